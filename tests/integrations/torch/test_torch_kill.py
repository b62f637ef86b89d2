"""A plain PyTorch loop, killed and started again by the same command, ends as if it had never been killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contract.training import Ended, Training, assert_same_training, resumed_steps

SCRIPT = Path(__file__).with_name("train_loop.py")


_references: dict[str, Ended] = {}


@pytest.fixture
def training(tmp_path: Path) -> Any:
    """Makes a training with options, and the reference of it that is never killed, made once for all tests."""

    def make(**options: Any) -> tuple[Training, Ended]:
        key = json.dumps(options, sort_keys=True)
        if key not in _references:
            _references[key] = Training(SCRIPT, tmp_path / "reference", options).complete()
        return Training(SCRIPT, tmp_path / "killed", options), _references[key]

    return make


CASES: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "augmented": {"augment": "globals", "scheduler": "multistep"},
    "generator of the dataset, masks": {"augment": "own", "mask": True, "norm": False},
    "accumulated": {"accumulate": 3, "every": 1},
    "accumulated, a step each batch": {"accumulate": 3, "every": 1, "step_each_batch": True},
    "plateau": {"scheduler": "plateau"},
    "workers": {"workers": 2, "augment": "globals", "mask": True},
    "persistent workers": {"workers": 2, "persistent": True, "augment": "own", "mask": True},
    "replayed": {"resume_data": "replay", "workers": 2, "augment": "globals"},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_killed_and_started_again_it_is_the_same_training(training: Any, options: dict[str, Any]) -> None:
    job, reference = training(**options)
    parts = [
        job.killed(saved=2),
        job.killed(batch=[0, 7]),  # the last of its epoch
        job.killed(batch=[1, 4]),
        job.killed(saved=6),
        job.killed(batch=[2, 6]),
        job.complete(),
    ]
    assert_same_training(reference, parts)
    steps = resumed_steps(parts)
    assert steps == sorted(steps)
    assert steps[-1] > steps[0] > 0


@pytest.mark.parametrize("what", ["rng", "data", "optimizer", "state"])
def test_a_resume_that_leaves_something_out_is_found(training: Any, what: str) -> None:
    job, reference = training(scheduler="plateau")
    parts = [job.killed(saved=12), job.complete(spoil=what)]
    with pytest.raises(AssertionError):
        assert_same_training(reference, parts)


def test_started_again_after_its_end(training: Any) -> None:
    job, reference = training()
    first = job.complete()
    again = job.complete()
    assert again.only("begin")["how"] == "complete"
    assert "already complete at step 24: nothing to do" in again.output
    assert again.of("step") == []
    assert again.only("end") == reference.only("end")
    assert "saved step" not in again.output

    anew = job.complete(resume=None)
    assert anew.only("begin") == {"kind": "begin", "how": "new-attempt", "step": 0, "attempt": 2}
    assert "starts from nothing" in anew.output
    assert_same_training(reference, [anew])
    assert first.only("begin")["how"] == "fresh"


def test_more_epochs_than_before_go_on_from_the_end(training: Any) -> None:
    job, reference = training()
    parts = [job.complete(epochs=1), job.complete(epochs=2), job.complete()]
    assert parts[1].only("begin")["how"] == "complete"
    assert [fact["at"] for fact in parts[0].of("step")][-1] == [0, "end"]
    assert_same_training(reference, [*parts[:2], parts[2]])


def test_stopped_early_is_complete_until_more_is_asked_for(training: Any) -> None:
    job, reference = training(patience=1, epochs=9)
    epochs = reference.only("end")["epoch"]
    assert epochs < 8, "the reference was to stop early"
    parts = [job.killed(saved=6), job.killed(batch=[1, 5]), job.complete()]
    assert_same_training(reference, parts)
    again = job.complete()
    assert again.only("begin")["how"] == "complete"
    assert again.of("step") == []
    assert job.complete(epochs=10).of("step") != []


@pytest.mark.parametrize(("name", "status", "workers"), [("SIGTERM", -15, 2), ("SIGUSR1", -10, 0)])
def test_a_signal_saves_and_then_ends_the_process(
    training: Any, name: str, status: int, workers: int
) -> None:
    job, reference = training(every=None, workers=workers, augment="globals")
    stopped = job.run(die={"signal": [[1, 2], name]})
    assert stopped.status == status, stopped.output
    assert f"{name} received" in stopped.output
    after = job.complete()
    assert after.only("begin")["step"] == 11, "the step in whose midst the signal came"
    assert_same_training(reference, [stopped, after])


def test_a_handler_of_ones_own_is_called_and_training_goes_on(training: Any) -> None:
    job, reference = training(every=None)
    told = job.run(handler="python", die={"signal": [[1, 2], "SIGUSR1"]})
    assert told.status == 0, told.output
    assert [fact["signal"] for fact in told.of("handled")] == [10]
    assert "saved step 11" in told.output
    assert_same_training(reference, [told])

    exited = job.run(handler="exit", resume=None, die={"signal": [[0, 4], "SIGTERM"]})
    assert exited.status == 3, exited.output
    assert job.run(resume="step=5", die={"batch": [0, 5]}).only("begin")["step"] == 5


def test_an_ignored_signal_stays_ignored(training: Any) -> None:
    job, reference = training(every=None)
    ended = job.complete(handler="ignore", die={"signal": [[1, 2], "SIGTERM"]})
    assert "saved step 11" in ended.output
    assert_same_training(reference, [ended])


def test_an_exception_is_not_swallowed_and_what_was_saved_is_durable(training: Any) -> None:
    job, reference = training()
    failed = job.run(die={"raise": [1, 5]})
    assert failed.status == 1
    assert "RuntimeError: on purpose" in failed.output
    assert_same_training(reference, [failed, job.complete()])


def test_an_older_checkpoint_by_name(training: Any) -> None:
    job, reference = training()
    whole = job.complete()
    back = job.complete(resume="step=9")
    assert back.only("begin")["step"] == 9
    assert_same_training(reference, [whole, back])
