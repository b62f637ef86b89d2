"""Copies made while training goes on: whole when they were waited for, given up when they cannot be trusted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, HookContext, HookEvent, SaveHandle, SaveNotDoneError, Session
from ckpt_core.pipeline import staging
from ckpt_core.stores import MemoryStore


class Lazy:
    """Knows some arrays that nobody changes without waiting."""

    def __init__(self, *arrays: Any, ready: bool = True, reason: str | None = None) -> None:
        self.arrays = {id(each) for each in arrays}
        self.ready = ready
        self.reason = reason
        self.wait: Callable[[], None] = lambda: None
        self.asked = 0

    def begin(self, wait: Callable[[], None]) -> bool:
        self.wait = wait
        return self.ready

    def __contains__(self, value: Any) -> bool:
        return id(value) in self.arrays

    def changed(self) -> str | None:
        self.asked += 1
        return self.reason


class Gate(threading.Event):
    """Closed until it is set. Whoever comes to it is told of by `reached`."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Copies on other threads than this one are made when it is set."""
    gate, here, original = Gate(), threading.get_ident(), staging._copy

    def copy(leaf: Any, out: Any) -> None:
        if threading.get_ident() != here:
            gate.reached.set()
            assert gate.wait(60)
        original(leaf, out)

    monkeypatch.setattr(staging, "_copy", copy)
    return gate


def test_a_save_returns_before_they_are_made_and_holds_what_was_there(gate: Gate) -> None:
    weights, buffer = np.ones(1000), np.ones(10)
    lazy = Lazy(weights)
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        staged: list[Any] = []
        manager.hooks.register_hook(staged.append, [HookEvent.AFTER_STAGE])
        handle = manager.save({"w": weights, "b": buffer}, step=1, lazy=lazy)
        assert len(staged) == 1
        assert not handle.done()
        buffer += 1  # it was copied at once
        gate.set()
        lazy.wait()
        weights += 1
        handle.result(60)
        found = manager.load()
    assert (found["w"] == 1).all()
    assert (found["b"] == 1).all()
    assert lazy.asked == 1


def test_copies_that_cannot_be_trusted_make_no_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    weights = np.ones(1000)
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        lazy = Lazy(weights, reason="somebody wrote to w")
        error = manager.save({"w": weights}, step=1, lazy=lazy).exception(60)
        assert isinstance(error, SaveNotDoneError)
        assert error.kind == "changed"
        assert manager.latest() is None
        manager.save({"w": weights}, step=2, lazy=Lazy(weights)).result(60)
    assert "the save of step 1 was given up: somebody wrote to w" in caplog.text


def test_not_this_time(gate: Gate) -> None:
    weights = np.ones(1000)
    lazy = Lazy(weights, ready=False)
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        handle = manager.save({"w": weights}, step=1, lazy=lazy)
        weights += 1
        lazy.wait()
        handle.result(60)
        assert (manager.load()["w"] == 1).all()
    assert lazy.asked == 0


def test_nobody_waits_for_ever_when_a_state_cannot_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise OSError("the device is gone")

    monkeypatch.setattr(staging, "copy", fail)
    lazy = Lazy()
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        assert manager.save({"w": np.ones(3)}, step=1, lazy=lazy).exception(60) is not None
        lazy.wait()


def test_an_error_of_a_late_copy_is_the_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("the device is gone")

    weights = np.ones(3)
    lazy = Lazy(weights)
    monkeypatch.setattr(staging, "_copy", fail)
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        error = manager.save({"w": weights}, step=1, lazy=lazy).exception(60)
        assert isinstance(error, OSError)
        lazy.wait()


def test_memory_of_a_save_that_was_replaced_is_not_used_again_too_early(gate: Gate) -> None:
    one, two, three = (np.full(1000, value) for value in (1.0, 2.0, 3.0))
    with CheckpointManager(MemoryStore(), experiment="x", max_pending=2, on_busy="replace") as manager:
        handles: list[SaveHandle] = []

        def late(context: HookContext) -> None:
            """The first is under way until the second was replaced."""
            if context.step == 1:
                handles[0].exception(60)

        manager.hooks.register_hook(late, [HookEvent.AFTER_SAVE])
        first = manager.save({"w": one}, step=1, lazy=Lazy(one))
        assert gate.reached.wait(60)
        second = manager.save({"w": two}, step=2, lazy=Lazy(two))
        handles.append(second)
        opener = threading.Timer(0.05, gate.set)
        opener.start()
        third = manager.save({"w": three}, step=3)
        opener.join()
        first.exception(60)
        assert isinstance(second.exception(60), SaveNotDoneError)
        third.result(60)
        assert (manager.load("step=3")["w"] == 3).all()


def test_a_session_passes_on_what_its_adapter_knows() -> None:
    weights = np.ones(10)
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        session = Session(manager)
        session.lazy = lazy = Lazy(weights)
        session.step_end(1)
        session.request("now")
        handle = session.safe_point(1, 0, lambda: {"w": weights})
        assert handle is not None
        handle.result(60)
        session.finish(1, 0, lambda: {"w": weights})
    assert lazy.asked == 1, "the last save waits, and copies nothing"
