"""Saving: what a handle promises, how failures are told, what comes after a commit, and in which order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ckpt_core import (
    CheckpointManager,
    HookContext,
    HookEvent,
    KeepLast,
    StoreError,
    UsageError,
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


class Gate:
    """A hook that holds every save until it is opened."""

    def __init__(self, manager: CheckpointManager) -> None:
        self.entered = threading.Semaphore(0)
        self._open = threading.Event()
        manager.hooks.register_hook(self._hold, HookEvent.BEFORE_SAVE)

    def _hold(self, context: HookContext) -> None:
        self.entered.release()
        assert self._open.wait(60)

    def open(self) -> None:
        self._open.set()


def record(manager: CheckpointManager, *events: HookEvent) -> list[HookContext]:
    seen: list[HookContext] = []
    manager.hooks.register_hook(seen.append, events)
    return seen


# -- handles --------------------------------------------------------------------------------------


def test_training_goes_on_with_its_tensors_while_a_save_is_pending(manager: CheckpointManager) -> None:
    gate = Gate(manager)
    live = state(1)
    handle = manager.save(live, step=1)
    live["w"][:] = -1
    assert not handle.done()
    gate.open()
    checkpoint = handle.result(60)
    assert checkpoint.step == 1
    assert (manager.load()["w"] == 1).all()


def test_with_wait_nothing_is_copied_and_the_result_is_there(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "copy", lambda *arguments: pytest.fail("the state was copied"))
    handle = manager.save(state(), step=1, wait=True)
    assert handle.done()
    assert manager.latest().id == handle.result().id


def test_a_checkpoint_knows_its_facts(manager: CheckpointManager) -> None:
    first = manager.save(state(1), step=1, metrics={"loss": 0.5, "acc": float("inf")}, reason="epoch").result(
        60
    )
    second = manager.save(state(1), step=2, tags=["b", "a", "b"]).result(60)
    manager.wait()
    assert first.metrics == {"loss": 0.5, "acc": float("inf")}
    assert first.parent is None
    assert second.parent == first.id
    assert second.tags == ("a", "b")
    assert second.written_bytes == 0
    assert first.attempt == second.attempt == manager.attempt
    assert manager.checkpoints() == [first, second]
    manifest = manager.workspace.repository.read(first.key).manifest
    assert manifest.writer["reason"] == "epoch"
    assert manifest.writer["host"]


def test_waiting_covers_what_follows_a_save(manager: CheckpointManager) -> None:
    reached, may_go = threading.Event(), threading.Event()

    def slow(context: HookContext) -> None:
        reached.set()
        assert may_go.wait(60)

    manager.hooks.register_hook(slow, HookEvent.AFTER_SAVE)
    handle = manager.save(state(), step=1)
    assert handle.result(60).step == 1
    assert reached.wait(60)
    assert manager.wait(0.0) is False
    may_go.set()
    assert manager.wait(60) is True


def test_skipping_and_replacing(store: ScriptedStore, caplog: pytest.LogCaptureFixture) -> None:
    with CheckpointManager(store, experiment="x", on_busy="skip") as manager:
        gate = Gate(manager)
        manager.save(state(1), step=1)
        skipped = manager.save(state(2), step=2)
        assert skipped.exception(0).kind == "skipped"
        gate.open()
    assert "step 2 was skipped" in caplog.text
    assert manager.failures == []  # it was asked for
    with CheckpointManager(store, experiment="y", on_busy="replace", max_pending=2) as manager:
        gate = Gate(manager)
        manager.save(state(1), step=1)
        assert gate.entered.acquire(timeout=60)
        replaced = manager.save(state(2), step=2)
        manager.save(state(3), step=3)
        assert replaced.exception(60).kind == "replaced"
        gate.open()
    with CheckpointManager(store, experiment="y") as manager:
        assert [c.step for c in manager.checkpoints()] == [1, 3]


def test_arenas_are_reused_and_given_back_however_a_save_ends(manager: CheckpointManager, store: Any) -> None:
    pool = manager._intake._arenas
    manager.save(state(1), step=1).result(60)
    fail_packs(store)
    manager.save(state(2), step=2).exception(60)
    manager.wait()
    assert len(pool._free) == 1


# -- order of events ------------------------------------------------------------------------------


def test_the_order_of_events_of_a_save(store: ScriptedStore) -> None:
    manager = CheckpointManager(store, experiment="x", metric="loss", retention=[KeepLast(1)])
    events = record(
        manager, HookEvent.AFTER_STAGE, HookEvent.BEFORE_SAVE, HookEvent.AFTER_SAVE, HookEvent.NEW_BEST,
        HookEvent.BEFORE_DELETE, HookEvent.AFTER_DELETE,
    )  # fmt: skip
    for step in (1, 2):
        manager.save(state(step), step=step, metrics={"loss": 1 / step})
        manager.wait()
    names = [event.event.name for event in events]
    assert names == [
        "AFTER_STAGE", "BEFORE_SAVE", "AFTER_SAVE", "NEW_BEST",
        "AFTER_STAGE", "BEFORE_SAVE", "AFTER_SAVE", "NEW_BEST", "BEFORE_DELETE", "AFTER_DELETE",
    ]  # fmt: skip
    assert [event.step for event in events[-2:]] == [1, 1]
    assert events[-2].reason == "kept by none of: last 1"
    assert events[5].checkpoint is None
    assert events[6].checkpoint.step == 2
    assert events[6].metrics == {"loss": 0.5}
    assert all(event.experiment == "x" and event.attempt == manager.attempt for event in events)
    manager.close()


def test_new_best_only_for_a_better_value(manager: CheckpointManager) -> None:
    bests = record(manager, HookEvent.NEW_BEST)
    for step, loss in enumerate([0.5, 0.5, 0.7, 0.4]):
        manager.save(state(step), step=step, metrics={"loss": loss}, wait=True)
    manager.save(state(9), step=9, wait=True)
    assert [event.step for event in bests] == [0, 3]


def test_after_save_sees_the_checkpoint_in_the_catalog(manager: CheckpointManager) -> None:
    found = []
    manager.hooks.register_hook(lambda context: found.append(manager.latest()), HookEvent.AFTER_SAVE)
    checkpoint = manager.save(state(1), step=1).result(60)
    manager.wait()
    assert found == [checkpoint]


@pytest.mark.parametrize("wait", [False, True])
def test_a_hook_cannot_save_within_a_save(manager: CheckpointManager, wait: bool) -> None:
    errors = []

    def again(context: HookContext) -> None:
        for option in (False, True):
            try:
                manager.save(state(2), step=context.step + 1, wait=option)
            except UsageError as error:
                errors.append(error.kind)

    manager.hooks.register_hook(again, HookEvent.AFTER_SAVE)
    manager.save(state(1), step=1, wait=wait).result(60)
    assert manager.wait(60)
    assert errors == ["nested", "nested"]
    assert [c.step for c in manager.checkpoints()] == [1]


def test_a_hook_may_look_and_load(manager: CheckpointManager) -> None:
    loaded = []
    manager.hooks.register_hook(lambda context: loaded.append(manager.load()["step"]), HookEvent.AFTER_SAVE)
    manager.save(state(5), step=5).result(60)
    manager.wait()
    assert loaded == [5]


# -- tags -----------------------------------------------------------------------------------------


def test_a_tag_that_cannot_be_set_does_not_undo_the_save(
    manager: CheckpointManager, store: ScriptedStore, caplog: pytest.LogCaptureFixture
) -> None:
    def script(operation: str, key: str, when: str) -> None:
        if operation == "put" and key.endswith("tags/b.json"):
            raise StoreError("no room", kind="full")

    store.script = script
    checkpoint = manager.save(state(1), step=1, tags=["a", "b", "c"]).result(60)
    assert checkpoint.tags == ("a", "c")
    assert manager.resolve("c").id == checkpoint.id
    assert "could not be tagged 'b'" in caplog.text
    assert manager.failures == []


def test_a_tag_moves_to_the_newer_checkpoint(manager: CheckpointManager) -> None:
    manager.save(state(1), step=1, tags="good", wait=True)
    second = manager.save(state(2), step=2, tags=["good"], wait=True).result()
    assert manager.resolve("good").id == second.id
    assert [c.tags for c in manager.checkpoints()] == [(), ("good",)]
