"""A Lightning training, killed and started again by the same command, ends as if it had never been killed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from contract.training import Ended, Training, assert_same_training, resumed_steps

SCRIPT = Path(__file__).with_name("fit_digits.py")


@pytest.fixture
def training(tmp_path: Path) -> Any:
    """Makes a training with options, and the reference of it that is never killed."""

    def make(**options: Any) -> tuple[Training, Ended]:
        reference = Training(SCRIPT, tmp_path / "reference", options).complete()
        return Training(SCRIPT, tmp_path / "killed", options), reference

    return make


CASES: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "pytorch_lightning": {"package": "pytorch_lightning", "scheduler": "cosine"},
    "validation within the epoch": {"val_every": 3, "scheduler": "multistep"},
    "plateau": {"scheduler": "plateau", "every": 2},
    "accumulated": {"accumulate": 3, "every": 1},
    "augmented, masks": {"augment": True, "mask": True},
    "workers": {"workers": 2, "augment": True, "mask": True},
    "early stopping": {"stop": True, "epochs": 6},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_killed_and_started_again_it_is_the_same_training(training: Any, options: dict[str, Any]) -> None:
    job, reference = training(**options)
    parts = [
        job.killed(saved=2),
        job.killed(batch=[0, 7]),  # the last of its epoch
        job.killed(batch=[1, 4]),
        job.killed(saved=6),
        job.complete(),
    ]
    assert_same_training(reference, parts)
    steps = resumed_steps(parts)
    assert steps == sorted(steps)
    assert steps[0] > 0


@pytest.mark.parametrize("step", [3, 4, 8])
def test_saved_where_a_validation_is_due_and_at_the_last_batch(training: Any, step: int) -> None:
    # 8 batches an epoch, a validation after the 4th and the 8th: step 4 is due, 8 is due and the last one.
    job, reference = training(val_every=4, every=1)
    parts = [job.killed(saved=step), job.complete()]
    assert_same_training(reference, parts)
    assert parts[1].only("begin")["step"] >= step


def test_a_resume_that_does_not_restore_the_data_is_noticed(training: Any) -> None:
    job, reference = training()
    first = job.killed(saved=6)
    broken = Training(SCRIPT, job.folder, {**job.options, "samples": 59}).complete()
    with pytest.raises(AssertionError):
        assert_same_training(reference, [first, broken])


def test_started_again_after_the_end(training: Any, tmp_path: Path) -> None:
    job, reference = training()
    again = Training(SCRIPT, tmp_path / "reference").complete()
    assert again.of("step") == []
    assert again.only("end")["weights"] == reference.only("end")["weights"]
    assert "training is already complete at step 24: nothing to do" in again.output
    anew = Training(SCRIPT, tmp_path / "reference").complete(resume=None)
    assert anew.of("step") == reference.of("step")
    assert "attempt 2 starts from nothing" in anew.output
    more = Training(SCRIPT, tmp_path / "reference").complete(epochs=4)
    assert [fact["at"] for fact in more.of("step")][0] == [3, 0]


def test_ckpt_path_takes_references(training: Any, tmp_path: Path) -> None:
    _, reference = training()
    for path, step in (("step=3", 3), ("latest", 24)):
        ended = Training(SCRIPT, tmp_path / "reference").complete(ckpt_path=path, resume=None)
        assert ended.only("how")["step"] == step
        assert ended.only("end")["weights"] == reference.only("end")["weights"]
    assert Training(SCRIPT, tmp_path / "reference").run(ckpt_path="no-such-tag").status == 1


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_preempted_training_saves_first_and_goes_on_exactly(training: Any, name: str) -> None:
    job, reference = training(every=100)
    preempted = job.run(die={"signal": [[1, 2], name]})
    # Nobody else handles SIGUSR1: the default action ends the process. At SIGTERM Lightning leaves by SystemExit.
    assert preempted.status == (-signal.SIGUSR1 if name == "SIGUSR1" else 0)
    assert preempted.of("end") == []
    parts = [preempted, job.complete()]
    assert_same_training(reference, parts)
    assert parts[1].only("begin")["step"] == 11


def test_an_earlier_handler_of_sigterm_is_called(training: Any) -> None:
    job, _ = training(every=100)
    ended = job.run(die={"signal": [[1, 2], "SIGTERM"], "handler": True})
    assert ended.only("handled")["signal"] == signal.SIGTERM


def test_an_exception_goes_on_and_what_was_saved_stays(training: Any) -> None:
    job, reference = training()
    failed = job.run(die={"raise": [1, 4]})
    assert failed.status == 1
    assert "on purpose" in failed.output
    assert_same_training(reference, [failed, job.complete()])
