"""Saving: what a handle promises, how failures are told, what comes after a commit, and in which order."""

from __future__ import annotations

import logging
import threading
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
    SaveNotDoneError,
    StateError,
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


# -- failures -------------------------------------------------------------------------------------


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


# -- hooks that raise -----------------------------------------------------------------------------


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


# -- arguments ------------------------------------------------------------------------------------


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
