"""Saves that fail, and hooks that raise: who is told, what is left, and that training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ckpt_core import (
    CheckpointManager,
    HookContext,
    HookError,
    HookEvent,
    KeepLast,
    SaveFailedError,
    SaveNotDoneError,
    StoreError,
    UsageError,
    hook,
)
from ckpt_core.pipeline import staging
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


def fail_packs(store: ScriptedStore, error: Exception | None = None) -> None:
    """From now on no pack can be written."""

    def script(operation: str, key: str, when: str) -> None:
        if operation == "create" and key.startswith("packs/"):
            raise error or StoreError("the disk is full", kind="full", key=key)

    store.script = script


def record(manager: CheckpointManager, *events: HookEvent) -> list[HookContext]:
    seen: list[HookContext] = []
    manager.hooks.register_hook(seen.append, events)
    return seen


@pytest.mark.parametrize("wait", [False, True])
def test_a_failed_save_is_told_everywhere_and_loses_nothing(
    store: ScriptedStore, wait: bool, caplog: pytest.LogCaptureFixture
) -> None:
    manager = CheckpointManager(store, experiment="x")
    manager.save(state(1), step=1, wait=True)
    events = record(manager, HookEvent.SAVE_FAILED)
    fail_packs(store)
    if wait:
        with pytest.raises(StoreError, match="the disk is full"):
            manager.save(state(2), step=2, wait=True, reason="why")
    else:
        handle = manager.save(state(2), step=2, reason="why")
        assert isinstance(handle.exception(60), StoreError)
        manager.wait()
    assert [(step, str(error)) for step, error in manager.failures] == [(2, "the disk is full")]
    assert [(event.step, event.reason, str(event.error)) for event in events] == [
        (2, "why", "the disk is full")
    ]
    entry = next(e for e in manager.workspace.index.catalog().audit_log() if e.outcome == "failed")
    assert entry.detail["step"] == 2
    assert "the save of step 2 failed: the disk is full" in caplog.text
    store.script = None
    assert (manager.load()["w"] == 1).all()
    assert manager.save(state(3), step=3).result(60).step == 3
    caplog.clear()
    manager.close()
    assert "reminder: the save of step 2 failed: the disk is full" in caplog.text
    assert len(list(store.list("packs"))) == 2  # nothing is left of the one that failed


def test_an_error_of_the_engine_itself_fails_the_save_and_not_the_training(
    manager: CheckpointManager, store: ScriptedStore
) -> None:
    fail_packs(store, ZeroDivisionError("a bug"))
    handle = manager.save(state(1), step=1)
    assert isinstance(handle.exception(60), ZeroDivisionError)
    manager.wait()
    assert manager.failures[0][0] == 1
    store.script = None
    assert manager.save(state(2), step=2).result(60).step == 2


def test_what_cannot_be_staged_is_a_failed_save(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(flat: Any, arena: Any) -> Any:
        raise RuntimeError("device lost")

    monkeypatch.setattr(staging, "copy", broken)
    events = record(manager, HookEvent.SAVE_FAILED)
    handle = manager.save(state(1), step=1)
    assert str(handle.exception(0)) == "device lost"
    assert [event.step for event in events] == [1]
    monkeypatch.undo()
    assert manager.save(state(2), step=2).result(60).step == 2


def test_without_memory_for_a_copy_training_waits(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(flat: Any, arena: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(staging, "copy", full)
    handle = manager.save(state(1), step=1)
    assert handle.done()
    assert handle.result().step == 1
    assert "training waits for the save of step 1" in caplog.text


def test_an_interrupt_while_staging_gives_the_place_back(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(flat: Any, arena: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(staging, "copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        manager.save(state(1), step=1)
    monkeypatch.undo()
    assert manager.save(state(2), step=2).result(60).step == 2


def test_what_is_published_is_not_reported_as_failed(
    manager: CheckpointManager, store: ScriptedStore, caplog: pytest.LogCaptureFixture
) -> None:
    """After the commit it is looked whether a prune has taken a pack away. That look may fail."""
    published = []

    def script(operation: str, key: str, when: str) -> None:
        if operation == "commit" and key.startswith("checkpoints/") and when == "after":
            published.append(key)
        if published and operation == "info":
            raise StoreError("the network is down", kind="io")

    store.script = script
    handle = manager.save(state(1), step=1)
    assert handle.result(60).key == published[0]
    store.script = None
    assert "could not be checked" in caplog.text
    assert manager.failures == []


def test_a_save_vetoed_is_not_a_failure(manager: CheckpointManager, caplog: pytest.LogCaptureFixture) -> None:
    manager.hooks.register_hook(
        hook(HookEvent.BEFORE_SAVE, name="guard")(lambda context: context.veto("hot"))
    )
    handle = manager.save(state(1), step=1)
    error = handle.exception(60)
    assert isinstance(error, SaveNotDoneError)
    assert error.kind == "vetoed"
    assert "guard: hot" in str(error)
    with pytest.raises(SaveNotDoneError):
        manager.save(state(1), step=1, wait=True)
    assert manager.failures == []
    assert manager.checkpoints() == []
    audited = [entry for entry in manager.workspace.index.catalog().audit_log() if entry.outcome == "vetoed"]
    assert len(audited) == 2


def raising(event: HookEvent, error: BaseException | None = None) -> Any:
    def bad(context: HookContext) -> None:
        raise error or RuntimeError("boom")

    return hook(event, on_error="raise", name="bad")(bad)


def test_before_save_fails_the_save(manager: CheckpointManager) -> None:
    manager.hooks.register_hook(raising(HookEvent.BEFORE_SAVE))
    assert isinstance(manager.save(state(1), step=1).exception(60), HookError)
    with pytest.raises(HookError, match="boom"):
        manager.save(state(2), step=2, wait=True)
    assert [step for step, _ in manager.failures] == [1, 2]


@pytest.mark.parametrize("event", [HookEvent.AFTER_SAVE, HookEvent.NEW_BEST])
@pytest.mark.parametrize("wait", [False, True])
def test_a_hook_after_the_commit_cannot_undo_it_nor_keep_retention_from_its_work(
    store: ScriptedStore, event: HookEvent, wait: bool, caplog: pytest.LogCaptureFixture
) -> None:
    manager = CheckpointManager(store, experiment="x", metric="loss", retention=[KeepLast(1)])
    manager.hooks.register_hook(raising(event))
    bests = record(manager, HookEvent.NEW_BEST) if event is HookEvent.AFTER_SAVE else []
    for step in (1, 2, 3):
        handle = manager.save(state(step), step=step, metrics={"loss": 1 / step}, wait=wait)
        assert handle.result(60).step == step
    manager.wait()
    assert [c.step for c in manager.checkpoints()] == [3]
    assert len(bests) == (3 if event is HookEvent.AFTER_SAVE else 0)
    assert manager.failures == []
    caplog.clear()
    manager.close()
    assert caplog.text.count("is saved, but what follows a save was not all done") == 3


def test_save_failed_keeps_the_error_of_the_save(manager: CheckpointManager, store: ScriptedStore) -> None:
    manager.hooks.register_hook(raising(HookEvent.SAVE_FAILED))
    fail_packs(store)
    assert str(manager.save(state(1), step=1).exception(60)) == "the disk is full"
    with pytest.raises(StoreError, match="the disk is full"):
        manager.save(state(1), step=1, wait=True)


def test_after_stage_reaches_the_caller_and_the_save_is_made(manager: CheckpointManager) -> None:
    manager.hooks.register_hook(raising(HookEvent.AFTER_STAGE))
    with pytest.raises(HookError, match="boom"):
        manager.save(state(1), step=1)
    assert manager.wait(60)
    assert [c.step for c in manager.checkpoints()] == [1]


@pytest.mark.parametrize("event", [HookEvent.BEFORE_SAVE, HookEvent.AFTER_SAVE])
def test_a_hook_that_ends_the_program_ends_nothing_from_the_background(
    manager: CheckpointManager, event: HookEvent
) -> None:
    unregister = manager.hooks.register_hook(raising(event, SystemExit(1)))
    handle = manager.save(state(1), step=1)
    if event is HookEvent.BEFORE_SAVE:
        assert isinstance(handle.exception(60), SystemExit)
    else:
        assert handle.result(60).step == 1
    assert manager.wait(60)
    manager.hooks.unregister_hook(unregister)
    assert manager.save(state(2), step=2).result(60).step == 2


def test_a_retention_policy_with_a_bug_is_told_and_loses_nothing(
    store: ScriptedStore, caplog: pytest.LogCaptureFixture
) -> None:
    class Buggy:
        def keep(self, checkpoints: Any, context: Any) -> Any:
            return {}[len(checkpoints)] if checkpoints else {}

        def describe(self, context: Any) -> str:
            return "buggy"

    with CheckpointManager(store, experiment="x", retention=[Buggy()]) as manager:
        assert manager.save(state(1), step=1).result(60).step == 1
        assert manager.save(state(2), step=2, wait=True).result().step == 2
        assert [c.step for c in manager.checkpoints()] == [1, 2]
    assert "old checkpoints could not be deleted" in caplog.text


# -- what a failed save does to the program ----------------------------------------------------------


def failing(store: ScriptedStore, on_save_error: Any) -> CheckpointManager:
    """A manager one of whose saves has failed, and a later one not."""
    manager = CheckpointManager(store, experiment="x", on_save_error=on_save_error)
    manager.save(state(1), step=1, wait=True)
    fail_packs(store)
    manager.save(state(2), step=2).exception(60)
    store.script = None
    manager.save(state(3), step=3, wait=True)
    return manager


def test_a_failed_save_is_reported_and_no_more(
    store: ScriptedStore, caplog: pytest.LogCaptureFixture
) -> None:
    with failing(store, "report") as manager:
        manager.raise_failures()
    assert "reminder: the save of step 2 failed" in caplog.text


@pytest.mark.parametrize("on_save_error", ["raise", "stop"])
def test_a_failed_save_is_raised_at_the_end_if_asked(store: ScriptedStore, on_save_error: str) -> None:
    with (
        pytest.raises(SaveFailedError, match="step 2: the disk is full") as caught,
        failing(store, on_save_error),
    ):
        pass
    assert caught.value.steps == (2,)
    assert isinstance(caught.value.__cause__, StoreError)


def test_what_was_raised_once_is_not_raised_again(store: ScriptedStore) -> None:
    manager = failing(store, "raise")
    with pytest.raises(SaveFailedError):
        manager.raise_failures()
    manager.close()


def test_whatever_ended_the_block_goes_before(store: ScriptedStore) -> None:
    with pytest.raises(KeyError), failing(store, "raise"):
        raise KeyError("mine")


def test_what_a_failed_save_may_do_is_checked(store: ScriptedStore) -> None:
    with pytest.raises(UsageError, match="on_save_error='explode' must be"):
        CheckpointManager(store, experiment="x", on_save_error="explode")  # type: ignore[arg-type]
