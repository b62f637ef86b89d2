"""What a save refuses before anything is done: steps, metrics, tags and states that cannot be."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ckpt_core import (
    CheckpointManager,
    KeepLast,
    StateError,
    UsageError,
)
from ckpt_core.stores import MemoryStore
from crash.wrappers import ScriptedStore


def state(step: int = 1) -> dict[str, Any]:
    return {"w": np.full((16, 16), step, np.float32), "step": step}


@pytest.fixture
def store() -> ScriptedStore:
    return ScriptedStore(MemoryStore())


@pytest.fixture
def manager(store: ScriptedStore) -> Iterator[CheckpointManager]:
    with CheckpointManager(store, experiment="x", metric="loss") as manager:
        yield manager


@pytest.mark.parametrize("step", [-1, 1.5, "3", None, 1 << 62])
def test_a_step_must_be_a_whole_number(manager: CheckpointManager, step: Any) -> None:
    with pytest.raises(UsageError, match="whole number") as caught:
        manager.save(state(), step=step)
    assert caught.value.kind == "step"


def test_numpy_steps_are_whole_numbers(manager: CheckpointManager) -> None:
    assert manager.save(state(), step=np.int32(4), wait=True).result().step == 4


def test_a_step_that_goes_backwards(manager: CheckpointManager) -> None:
    manager.save(state(), step=10, wait=True)
    manager.save(state(), step=10, wait=True)
    with pytest.raises(UsageError, match="step=9 goes backwards") as caught:
        manager.save(state(), step=9)
    assert (caught.value.step, caught.value.last_step) == (9, 10)
    manager.begin_attempt(None)
    manager.save(state(), step=1, wait=True)


def test_a_nan_for_best(manager: CheckpointManager) -> None:
    with pytest.raises(UsageError, match="metric 'loss' is NaN at step 3") as caught:
        manager.save(state(), step=3, metrics={"loss": float("nan")})
    assert caught.value.metric == "loss"
    manager.save(state(), step=3, metrics={"other": float("nan")}, wait=True)


@pytest.mark.parametrize("value", ["0.5", None, [1.0], np.zeros(2), 10**400, 1j])
def test_metrics_must_be_numbers(manager: CheckpointManager, value: Any) -> None:
    with pytest.raises(UsageError, match="'m' is .* not one number"):
        manager.save(state(), step=1, metrics={"m": value})


@pytest.mark.parametrize("name", ["", "x" * 256, 3, "a\0b", "\ud800"])
def test_names_of_metrics(manager: CheckpointManager, name: Any) -> None:
    with pytest.raises(UsageError, match="not the name of a metric"):
        manager.save(state(), step=1, metrics={name: 1.0})


def test_an_object_without_a_codec_names_its_path_and_takes_no_place(manager: CheckpointManager) -> None:
    class Vocabulary:
        pass

    with pytest.raises(StateError, match="'data/vocab'.*no codec.*Vocabulary") as caught:
        manager.save({"data": {"vocab": Vocabulary()}}, step=1)
    assert caught.value.path == "data/vocab"
    assert manager.save(state(), step=0).result(60).step == 0  # nor was the step taken


def test_a_wrong_call_makes_no_folder(tmp_path: Any) -> None:
    root = tmp_path / "s"
    for options in (
        {"experiment": "../x"}, {"experiment": "x", "mode": "best"}, {"experiment": "x", "max_pending": 0},
        {"experiment": "x", "on_busy": "panic"}, {"experiment": "x", "retention": [KeepLast]},
    ):  # fmt: skip
        with pytest.raises((UsageError, TypeError)):
            CheckpointManager(root, **options)
        assert not root.exists()


def test_logging_is_by_area_and_nothing_is_printed(
    manager: CheckpointManager, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ckpt_core"):
        manager.save(state(), step=1, wait=True)
    assert "ckpt_core.save" in {record.name for record in caplog.records}
    assert capsys.readouterr() == ("", "")
