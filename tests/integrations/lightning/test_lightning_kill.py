"""Trainings of every kind that Lightning knows, killed and started again, end as if they had never been killed.

With the plain loaders, hooks, loggers and schedulers of Lightning, under both of its names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contract.training import Ended, Training, assert_same_training

SCRIPT = Path(__file__).with_name("train_lightning.py")


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


CASES: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "pytorch_lightning": {"package": "pytorch_lightning", "augment": "globals", "metrics": True, "every": 1},
    "validation in the midst": {"val_check": 0.25, "every": 1, "scheduler": "plateau by step"},
    "schedulers by epoch": {"scheduler": "multistep", "augment": "own", "hparams": True},
    "accumulated": {"accumulate": 3, "every": 1},
    "by steps": {"epochs": -1, "max_steps": 22, "every": 1},
    "part of the data": {"limit": 6, "workers": 2, "persistent": True, "augment": "globals"},
    "validation with workers": {"val_workers": 1, "mask": True, "augment": "globals"},
    "manual optimization": {"manual": True, "every": 1},
    "stream": {"stream": True, "augment": "globals", "every": 1},
    "two loaders": {"two": True, "augment": "globals", "every": 1},
    "loaders made anew": {"trainer": {"reload_dataloaders_every_n_epochs": 2}, "every": 1},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_killed_and_started_again_it_is_the_same_training(training: Any, options: dict[str, Any]) -> None:
    job, reference = training(**options)
    parts = [job.killed(saved=1), job.killed(batch=[1, 4]), job.complete()]
    assert_same_training(reference, parts)
    assert parts[-1].only("begin")["how"] == "resumed"
    assert parts[-1].only("series") == reference.only("series"), "the engine's own metric series"


@pytest.mark.parametrize("name", ["stream", "two loaders", "pytorch_lightning"])
def test_the_callback_changes_nothing(training: Any, name: str) -> None:
    job, reference = training(**CASES[name])
    assert_same_training(reference, [job.complete(bare=True)])


@pytest.mark.parametrize("val_check", [1.0, 0.5])
def test_killed_when_validation_was_due(training: Any, val_check: float) -> None:
    job, reference = training(every=1, val_check=val_check, scheduler="plateau by epoch", patience=5)
    parts = [job.killed(validated=8), job.killed(batch=[1, 7]), job.killed(validated=16), job.complete()]
    assert_same_training(reference, parts)


def test_stopped_early_is_complete_until_more_is_asked_for(training: Any) -> None:
    job, reference = training(patience=1, epochs=9)
    assert reference.only("end")["epoch"] < 8, "the reference was to stop early"
    parts = [job.killed(saved=6), job.killed(batch=[1, 5]), job.complete()]
    assert_same_training(reference, parts)
    again = job.complete()
    assert again.only("begin")["how"] == "complete"
    assert again.of("step") == []
    assert "nothing to do" in again.output
    assert "saved step" not in again.output


def test_a_signal_saves_and_then_takes_its_course(training: Any) -> None:
    job, reference = training(every=100, augment="globals", package="pytorch_lightning")
    # Lightning handles SIGTERM by itself: it ends training after the batch, with its own exception.
    parts = [
        job.run(die={"signal": [[0, 3], "SIGTERM"]}),
        job.run(die={"signal": [[1, 2], "SIGUSR1"]}),
        job.complete(),
    ]
    assert [part.status for part in parts] == [0, -10, 0], parts[0].output + parts[1].output
    assert "saved step 4" in parts[0].output
    assert parts[0].of("end") == []
    assert "saved step 11" in parts[1].output
    assert parts[2].only("begin")["step"] == 11
    assert_same_training(reference, parts)


def test_a_handler_of_ones_own_is_called_and_training_goes_on(training: Any) -> None:
    job, reference = training(every=100, package="pytorch_lightning", augment="globals")
    told = job.complete(handler="python", die={"signal": [[1, 2], "SIGUSR1"]})
    assert [fact["signal"] for fact in told.of("handled")] == [10]
    assert "saved step 11" in told.output
    assert_same_training(reference, [told])
