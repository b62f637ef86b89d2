"""A Lightning training, killed and started again by the same command, ends as if it had never been killed.

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
    "schedulers by step": {"scheduler": "step", "mask": True},
    "plateau": {"scheduler": "plateau by epoch", "patience": 5},
    "accumulated": {"accumulate": 3, "every": 1},
    "by steps": {"epochs": -1, "max_steps": 22, "every": 1},
    "part of the data": {"limit": 6, "workers": 2, "persistent": True, "augment": "globals"},
    "workers": {"workers": 2, "augment": "globals", "mask": True, "val_workers": 1},
    "manual optimization": {"manual": True, "every": 1},
    "stream": {"stream": True, "augment": "globals", "every": 1},
    "two loaders": {"two": True, "augment": "globals", "every": 1},
    "loaders made anew": {"trainer": {"reload_dataloaders_every_n_epochs": 2}, "every": 1},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_killed_and_started_again_it_is_the_same_training(training: Any, options: dict[str, Any]) -> None:
    job, reference = training(**options)
    parts = [
        job.killed(saved=1),
        job.killed(batch=[1, 0]),
        job.killed(batch=[1, 4]),
        job.complete(),
    ]
    assert_same_training(reference, parts)
    assert parts[-1].only("begin")["how"] == "resumed"
    assert parts[-1].only("series") == reference.only("series"), "the engine's own metric series"


@pytest.mark.parametrize("name", ["pytorch_lightning", "stream", "workers", "two loaders"])
def test_the_callback_changes_nothing(training: Any, name: str) -> None:
    job, reference = training(**CASES[name])
    assert_same_training(reference, [job.complete(bare=True)])


@pytest.mark.parametrize("what", ["rng", "logged", "module", "data", "counters"])
def test_a_resume_that_leaves_something_out_is_found(training: Any, what: str) -> None:
    job, reference = training(metrics=True, every=1)
    parts = [job.killed(batch=[1, 4]), job.complete(spoil=what)]
    with pytest.raises(AssertionError):
        assert_same_training(reference, parts)


@pytest.mark.parametrize("val_check", [1.0, 0.5])
def test_killed_when_validation_was_due(training: Any, val_check: float) -> None:
    job, reference = training(every=1, val_check=val_check, scheduler="plateau by epoch", patience=5)
    parts = [job.killed(validated=8), job.killed(batch=[1, 7]), job.killed(validated=16), job.complete()]
    assert_same_training(reference, parts)


def test_started_again_after_its_end(training: Any) -> None:
    job, reference = training()
    job.complete()
    again = job.complete()
    assert again.only("begin")["how"] == "complete"
    assert "already complete at step 24: nothing to do" in again.output
    assert again.of("step") == []
    assert again.only("end")["weights"] == reference.only("end")["weights"]
    assert "saved step" not in again.output
    anew = job.complete(resume=None)
    assert anew.only("begin") == {"kind": "begin", "how": "new-attempt", "step": 0}
    assert_same_training(reference, [anew])


def test_more_epochs_than_before_go_on_from_the_end(training: Any) -> None:
    job, reference = training(scheduler="plateau by epoch", val_workers=1)
    assert_same_training(reference, [job.complete(epochs=1), job.complete(epochs=2), job.complete()])


def test_stopped_early_is_complete_until_more_is_asked_for(training: Any) -> None:
    job, reference = training(patience=1, epochs=9)
    assert reference.only("end")["epoch"] < 8, "the reference was to stop early"
    parts = [job.killed(saved=6), job.killed(batch=[1, 5]), job.complete()]
    assert_same_training(reference, parts)
    again = job.complete()
    assert again.only("begin")["how"] == "complete"
    assert again.of("step") == []


@pytest.mark.parametrize(("package", "workers"), [("lightning.pytorch", 2), ("pytorch_lightning", 0)])
def test_a_signal_saves_and_then_takes_its_course(training: Any, package: str, workers: int) -> None:
    job, reference = training(every=100, workers=workers, augment="globals", package=package)
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
    job, reference = training(every=100)
    told = job.complete(handler="python", die={"signal": [[1, 2], "SIGUSR1"]})
    assert [fact["signal"] for fact in told.of("handled")] == [10]
    assert "saved step 11" in told.output
    assert_same_training(reference, [told])


def test_an_exception_is_not_swallowed_and_what_was_saved_is_durable(training: Any) -> None:
    job, reference = training()
    failed = job.run(die={"raise": [1, 5]})
    assert failed.status == 1
    assert "RuntimeError: on purpose" in failed.output
    assert_same_training(reference, [failed, job.complete()])


def test_ckpt_path_takes_references_and_goes_before_resume(training: Any) -> None:
    job, reference = training(monitor="val_loss", every=3)
    job.complete()
    for path, step in (("step=9", 9), ("digits@step=6", 6), ("latest", 24)):
        ended = job.complete(ckpt_path=path, resume=None)
        assert ended.only("begin")["step"] == step, ended.output
        assert ended.only("end")["weights"] == reference.only("end")["weights"]
    best = job.complete(ckpt_path="best", resume=None)
    assert best.only("begin")["step"] in (9, 15, 24)
    unknown = job.run(ckpt_path="no-such-tag")
    assert unknown.status == 1
    assert "no checkpoint answers to 'no-such-tag'" in unknown.output


def test_validate_takes_references(training: Any) -> None:
    job, reference = training(monitor="val_loss", package="pytorch_lightning")
    job.complete()
    weights = reference.only("end")["weights"]
    assert job.complete(evaluate="validate", ckpt_path="latest").only("end")["weights"] == weights
    assert job.complete(evaluate="validate", ckpt_path="step=8").only("end")["weights"] != weights
    assert job.complete(evaluate="validate", ckpt_path="best").of("step") != []
