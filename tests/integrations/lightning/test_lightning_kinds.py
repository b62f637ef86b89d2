"""Rival optimizers in manual optimization, and averaged weights: killed and started again, the same to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contract.training import Ended, Training, assert_same_training

SCRIPT = Path(__file__).with_name("train_kinds.py")
PRELOAD = ("lightning.pytorch", "pytorch_lightning", "torchmetrics", "ckpt_lightning")
_references: dict[str, Ended] = {}


@pytest.fixture
def training(tmp_path: Path) -> Any:
    """Makes a training with options, and the reference of it that is never killed, made once for all tests."""

    def make(**options: Any) -> tuple[Training, Ended]:
        key = json.dumps(options, sort_keys=True)
        if key not in _references:
            _references[key] = Training(SCRIPT, tmp_path / "reference", options, PRELOAD).complete()
        return Training(SCRIPT, tmp_path / "killed", options, PRELOAD), _references[key]

    return make


def stopped(job: Training, at: list[int]) -> Ended:
    """A process that is ended by a signal, when it has saved the state after a batch."""
    ended = job.run(die={"signal": at})
    assert ended.status == -10, ended.output
    return ended


@pytest.mark.parametrize("toggle", [True, False])
def test_two_optimizers_in_turns(training: Any, toggle: bool) -> None:
    job, reference = training(kind="rivals", toggle=toggle, epochs=3)
    parts = [stopped(job, [0, 2]), stopped(job, [0, 5]), stopped(job, [1, 3]), job.complete()]
    assert_same_training(reference, parts)
    assert_same_training(reference, [job.complete(store=str(job.folder / "other"), ours=False)])


# Epochs 0 to 3 train, the weights of 1 to 3 are averaged, epoch 4 measures the batch norms of the average.
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_stochastic_weight_averaging(training: Any, package: str) -> None:
    job, reference = training(kind="swa", package=package, val_check=0.5)
    assert reference.only("end")["epochs"] == [5, 4]
    parts = [
        stopped(job, [0, 3]),
        stopped(job, [0, 5]),
        stopped(job, [1, 2]),
        stopped(job, [1, 5]),
        stopped(job, [3, 1]),
        stopped(job, [3, 5]),
        stopped(job, [4, 3]),
        job.complete(),
    ]
    assert_same_training(reference, parts)
    again = job.complete()
    assert "already complete at step 25: nothing to do" in again.output
    assert again.only("after") == reference.only("after")


@pytest.mark.parametrize("at", [[1, 2], [3, 5], [4, 3]])
def test_without_what_is_done_for_it_averaging_would_differ(training: Any, at: list[int]) -> None:
    job, reference = training(kind="swa", package="lightning.pytorch", val_check=0.5)
    what = "revive" if at[1] == 5 else "revive_in_the_midst"
    parts = [stopped(job, at), job.run(spoil=what)]
    with pytest.raises(AssertionError):
        assert_same_training(reference, parts)


def test_stochastic_weight_averaging_without_batch_norms(training: Any) -> None:
    job, reference = training(kind="swa", norm="layer")
    assert reference.only("end")["epochs"] == [4, 4]
    parts = [stopped(job, [1, 2]), stopped(job, [2, 5]), stopped(job, [3, 4]), job.complete()]
    assert_same_training(reference, parts)


@pytest.mark.parametrize("kind", ["ema", "average by epoch"])
def test_moving_averages(training: Any, kind: str) -> None:
    job, reference = training(kind=kind)
    parts = [stopped(job, [0, 1]), stopped(job, [0, 5]), stopped(job, [2, 3]), job.complete()]
    assert_same_training(reference, parts)


@pytest.mark.parametrize(
    ("kind", "failure"), [("taught", {"raise": [1, 3]}), ("ema", {"raise_in_validation": 12})]
)
def test_what_was_written_behind_torchs_back_is_not_taken_for_the_last_good_state(
    training: Any, kind: str, failure: dict[str, Any]
) -> None:
    job, reference = training(kind=kind, every=5)
    parts = [job.run(die=failure), job.complete()]
    assert "the state before the failure is gone" in parts[0].output
    assert parts[1].only("begin")["step"] in (5, 10)
    assert_same_training(reference, parts)
