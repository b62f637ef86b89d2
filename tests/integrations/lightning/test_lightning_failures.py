"""An exception ends a training: where the last good state is still there it is saved, and gone on from exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contract.training import Training, assert_same_training

SCRIPT = Path(__file__).with_name("train_lightning.py")
PRELOAD = ("lightning.pytorch", "torchmetrics", "ckpt_lightning")


def test_wherever_a_step_fails_before_its_optimizer_moves(tmp_path: Path) -> None:
    options = {
        "every": 99,
        "mask": True,
        "augment": "globals",
        "metrics": True,
        "epochs": 2,
        "scheduler": "step",
    }
    reference = Training(SCRIPT, tmp_path / "reference", options, PRELOAD).complete()
    job = Training(SCRIPT, tmp_path / "failed", options, PRELOAD)
    failures: list[tuple[dict[str, Any], int]] = [
        ({"fail": ["on_train_batch_start", 0, 1, "RuntimeError"]}, 1),
        ({"fail": ["on_before_zero_grad", 0, 2, "RuntimeError"]}, 2),
        ({"raise_in_step": [0, 4]}, 4),
        ({"fail": ["on_before_backward", 0, 5, "KeyboardInterrupt"]}, 5),
        ({"fetch": 7}, 6),
        ({"fail_epoch": 1}, 8),
        ({"fail": ["on_after_backward", 1, 3, "RuntimeError"]}, 11),
        ({"fail": ["on_before_optimizer_step", 1, 4, "RuntimeError"]}, 12),
        ({"raise": [1, 6]}, 12),
    ]
    parts = [job.run(die=die) for die, _ in failures]
    parts.append(job.complete())
    assert [part.status for part in parts] == [1] * len(failures) + [0]
    assert [part.only("begin")["step"] for part in parts[1:]] == [step for _, step in failures]
    assert "the state before the failure is gone" in parts[-2].output
    assert_same_training(reference, parts)


VALIDATED = {
    "every": 99, "val_check": 0.5, "patience": 9, "scheduler": "plateau by step", "augment": "globals",
    "metrics": True, "epochs": 2,
}  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_a_validation_that_fails_is_made_again(tmp_path: Path, workers: int) -> None:
    options = {**VALIDATED, "workers": workers, "val_workers": workers}
    reference = Training(SCRIPT, tmp_path / "reference", options, PRELOAD).complete()
    job = Training(SCRIPT, tmp_path / "failed", options, PRELOAD)
    parts = [
        job.run(die={"raise_in_validation": 4}),
        job.run(die={"raise_after_validation": 8}),
        job.run(die={"signal": [[1, 3], "SIGUSR1"]}),
        job.run(die={"raise_in_validation": 16}),
        job.complete(),
    ]
    assert [part.only("begin")["step"] for part in parts[1:]] == [4, 8, 12, 16]
    assert_same_training(reference, parts)


def test_a_validation_that_ends_the_training_does_so_when_it_is_made_again(tmp_path: Path) -> None:
    options = {**VALIDATED, "patience": 2, "epochs": 9}
    reference = Training(SCRIPT, tmp_path / "reference", options, PRELOAD).complete()
    last = reference.only("end")["steps"]
    assert last < 9 * 8, "it was to stop early"
    assert last % 8, "and in the midst of an epoch"
    job = Training(SCRIPT, tmp_path / "failed", options, PRELOAD)
    parts = [job.run(die={"raise_in_validation": last}), job.complete()]
    assert parts[-1].only("begin")["step"] == last
    assert_same_training(reference, parts)


def test_a_validation_of_data_without_a_length_is_not_come_back_to(tmp_path: Path) -> None:
    options = {**VALIDATED, "stream": True, "val_check": 1.0}  # Lightning has fetched one batch more by then
    reference = Training(SCRIPT, tmp_path / "reference", options, PRELOAD).complete()
    job = Training(SCRIPT, tmp_path / "failed", options, PRELOAD)
    parts = [job.run(die={"raise_in_validation": 8}), job.complete()]
    assert parts[-1].only("begin")["step"] == 0
    assert_same_training(reference, parts)


@pytest.mark.parametrize(
    ("die", "step"),
    [({"raise_in_step": [0, 4]}, 1), ({"fail": ["on_after_backward", 0, 4, "RuntimeError"]}, 0)],
    ids=["forward", "backward"],
)
def test_gradients_that_were_being_summed_up(tmp_path: Path, die: dict[str, Any], step: int) -> None:
    options = {"every": 99, "accumulate": 3, "epochs": 1}
    reference = Training(SCRIPT, tmp_path / "reference", options, PRELOAD).complete()
    job = Training(SCRIPT, tmp_path / "failed", options, PRELOAD)
    parts = [job.run(die=die), job.complete()]
    assert parts[-1].only("begin")["step"] == step, "a backward pass that has begun has changed them"
    assert_same_training(reference, parts)


def test_a_failure_before_anything_was_trained_saves_nothing(tmp_path: Path) -> None:
    job = Training(SCRIPT, tmp_path / "failed", {"epochs": 1}, PRELOAD)
    failed = job.run(die={"raise_in_step": [0, 0]})
    assert failed.status == 1
    assert "saved step" not in failed.output
    assert job.complete().only("begin")["how"] == "fresh"
