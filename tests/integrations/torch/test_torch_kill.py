"""Plain PyTorch loops of many kinds, killed and started again, end as if they had never been killed.

The promises that all adapters make are in `test_torch_contract.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ckpt_core import CheckpointManager
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
    "in a with block, steps told": {"form": "with", "step": "step", "augment": "globals"},
    "generator of the dataset, masks": {"augment": "own", "mask": True, "norm": False},
    "accumulated": {"accumulate": 3, "every": 1},
    "accumulated, a step each batch": {"accumulate": 3, "every": 1, "step": "batch"},
    "plateau": {"scheduler": "plateau"},
    "copied while it trains on": {"staging": "lazy", "every": 1},
    "persistent workers": {"workers": 2, "persistent": True, "augment": "own", "mask": True},
    "replayed": {"resume_data": "replay", "workers": 2, "augment": "globals"},
    "stream": {"stream": True, "augment": "globals"},
    "stream in workers": {"stream": True, "workers": 2, "augment": "globals", "mask": True},
    "bfloat16": {"amp": "bfloat16"},
    "float16, scaled, accumulated": {"amp": "float16", "accumulate": 2, "every": 1, "mask": True},
    "two models": {"gan": True, "every": 2, "augment": "globals"},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_killed_and_started_again_it_is_the_same_training(training: Any, options: dict[str, Any]) -> None:
    job, reference = training(**options)
    late = 6 if "accumulate" in options and options.get("step") != "batch" else 15
    parts = [job.killed(batch=[0, 7]), job.killed(batch=[1, 4]), job.killed(saved=late), job.complete()]
    assert_same_training(reference, parts)
    steps = resumed_steps(parts)
    assert steps == sorted(steps)
    assert steps[-1] >= late > steps[0] > 0


def test_a_step_that_the_scaler_skips_is_none(training: Any) -> None:
    _, reference = training(**CASES["float16, scaled, accumulated"])
    assert 0 < reference.only("end")["steps"] < 12


def test_compiled_or_not_is_the_same_checkpoint(training: Any) -> None:
    job, reference = training()
    job.options["compile"] = "eager"
    parts = [job.killed(batch=[0, 6])]
    job.options["compile"] = None
    parts.append(job.killed(batch=[1, 6]))
    job.options["compile"] = "eager"
    assert_same_training(reference, [*parts, job.complete()])


def test_started_again_after_its_end(training: Any) -> None:
    job, reference = training()
    first = job.complete()
    again = job.complete()
    assert "already complete at step 24: nothing to do" in again.output
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


@pytest.mark.parametrize("form", ["bare", "with"])
def test_stopped_early_is_complete_until_more_is_asked_for(training: Any, form: str) -> None:
    job, reference = training(patience=1, epochs=9, form=form)
    assert reference.only("end")["steps"] < 8 * 8, "the reference was to stop early"
    parts = [job.killed(saved=6), job.killed(batch=[1, 5]), job.complete()]
    assert_same_training(reference, parts)
    again = job.complete()
    assert again.only("begin")["how"] == "complete"
    assert again.of("step") == []
    assert job.complete(epochs=10).of("step") != []


def test_a_signal_saves_and_then_ends_the_process(training: Any) -> None:
    job, reference = training(every=None, workers=2, augment="globals")
    stopped = job.run(die={"signal": [[1, 2], "SIGUSR1"]})
    assert stopped.status == -10, stopped.output
    assert "SIGUSR1 received" in stopped.output
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


EXCEPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    # when, options, the step that the next run goes on from
    "after the backward pass, in a with block": ({"raise": [1, 5]}, {"form": "with"}, 13),
    "in the data, of a worker": ({"poisoned": [1, 17]}, {"workers": 1, "augment": "globals"}, 13),
    "in the validation after an epoch": ({"raise": [1, ["evaluation", "end"]]}, {"augment": "globals"}, 16),
    "in a validation amid an epoch": ({"raise": [1, ["evaluation", 4]]}, {"evaluate_every": 5}, 12),
    "after the step": ({"raise": [1, ["after", 5]]}, {}, 12),
    "when gradients had accumulated": ({"raise": [1, 5]}, {"accumulate": 4, "every": 1}, 3),
}


@pytest.mark.parametrize(("die", "options", "step"), EXCEPTIONS.values(), ids=EXCEPTIONS.keys())
def test_an_exception_leaves_the_last_good_state(
    training: Any, die: dict[str, Any], options: dict[str, Any], step: int
) -> None:
    job, reference = training(**options)
    failed = job.run(die=die)
    assert failed.status == 1
    assert "RuntimeError: on purpose" in failed.output
    gone = "what was not saved before is lost" in failed.output
    after = job.complete()
    assert after.only("begin")["step"] == step
    assert gone == (
        die.get("raise", [1, 0])[1] in (["evaluation", 4], ["after", 5]) or "accumulate" in options
    )
    assert_same_training(reference, [failed, after])


def test_an_exception_before_anything_was_done_leaves_nothing(training: Any) -> None:
    job, _ = training()
    assert job.run(die={"raise": [0, 0]}).status == 1
    with CheckpointManager(job.folder / "store", experiment="digits") as manager:
        assert manager.latest() is None


def test_an_older_checkpoint_by_name(training: Any) -> None:
    job, reference = training()
    whole = job.complete()
    back = job.complete(resume="step=9")
    assert back.only("begin")["step"] == 9
    assert_same_training(reference, [whole, back])
