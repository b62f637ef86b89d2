"""Retention at work after every save: what goes, what is asked first, what an interruption leaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ckpt_core import (
    CheckpointManager,
    HookContext,
    HookEvent,
    KeepBest,
    KeepEvery,
    KeepLast,
    StoreError,
    hook,
)
from ckpt_core.pipeline import retaining as retaining_module
from ckpt_core.pipeline import workspace as workspace_module
from ckpt_core.policies import KeepTagged
from ckpt_core.stores import MemoryStore
from crash.wrappers import ScriptedStore


def state(step: int) -> dict[str, Any]:
    return {"shared": np.arange(5000), "w": np.full(5000, step)}


@pytest.fixture
def store() -> ScriptedStore:
    return ScriptedStore(MemoryStore())


@pytest.fixture
def manager(store: ScriptedStore) -> Iterator[CheckpointManager]:
    with CheckpointManager(
        store, experiment="x", metric="loss", retention=[KeepLast(2), KeepBest(1), KeepTagged()]
    ) as manager:
        yield manager


def save(manager: CheckpointManager, step: int, **options: Any) -> Any:
    return manager.save(state(step), step=step, wait=True, **options).result()


def steps(manager: CheckpointManager) -> list[int]:
    return [c.step for c in manager.checkpoints()]


def test_any_policy_keeps(manager: CheckpointManager) -> None:
    for step, loss in enumerate([0.5, 0.1, 0.9, 0.4, 0.3]):
        save(manager, step, metrics={"loss": loss}, tags=["keep"] if step == 0 else [])
    assert steps(manager) == [0, 1, 3, 4]
    assert [d.keep for d in manager.plan_retention()] == [True] * 4
    manager.untag("keep")
    plan = manager.plan_retention()
    assert [(d.checkpoint.step, d.keep) for d in plan] == [(0, False), (1, True), (3, True), (4, True)]
    assert plan[0].reasons == ("kept by none of: last 2, best 1 by loss (min), tagged",)
    assert steps(manager) == [0, 1, 3, 4]  # a plan deletes nothing
    save(manager, 5)
    assert steps(manager) == [1, 4, 5]


def test_bytes_are_reclaimed_and_no_more(manager: CheckpointManager, store: ScriptedStore) -> None:
    for step in range(10):
        save(manager, step)
    assert steps(manager) == [8, 9]
    assert len(list(store.list("trash"))) == 0
    # The first pack holds what all share, and one each for the two that are kept.
    assert len(list(store.list("packs"))) == 3
    assert manager.verify().ok
    assert manager.plan_prune().empty
    assert (manager.load("step=8")["w"] == 8).all()


def test_pins_and_tags_of_deleted_ones_go_with_them(manager: CheckpointManager, store: ScriptedStore) -> None:
    save(manager, 1, tags=["t"])
    manager.pin("latest")
    for step in (2, 3, 4):
        save(manager, step)
    assert steps(manager) == [1, 3, 4]
    manager.untag("t")
    manager.unpin("step=1")
    manager.tag("step=1", "u")
    save(manager, 5)
    assert steps(manager) == [1, 4, 5]
    manager.untag("u")
    save(manager, 6)
    assert steps(manager) == [5, 6]
    assert list(store.list("refs")) == []


def test_what_loses_its_pin_goes_with_the_next_save(store: ScriptedStore) -> None:
    with CheckpointManager(store, experiment="x", retention=[KeepEvery(steps=10)]) as manager:
        save(manager, 5)
        manager.pin("latest")
        save(manager, 10)
        save(manager, 20)
        assert steps(manager) == [5, 10, 20]
        manager.unpin("step=5")
        save(manager, 30)
        assert steps(manager) == [10, 20, 30]


def test_what_loses_its_tag_to_the_new_one_goes_at_once(store: ScriptedStore) -> None:
    with CheckpointManager(store, experiment="x", retention=[KeepEvery(steps=10), KeepTagged()]) as manager:
        save(manager, 5, tags=["t"])
        save(manager, 10)
        assert steps(manager) == [5, 10]
        save(manager, 20, tags=["t"])
        assert steps(manager) == [10, 20]


def test_a_hook_may_keep_one(manager: CheckpointManager, caplog: pytest.LogCaptureFixture) -> None:
    @hook(HookEvent.BEFORE_DELETE, name="guard")
    def guard(context: HookContext) -> Any:
        return context.veto("mine") if context.step == 1 else None

    manager.hooks.register_hook(guard)
    for step in range(5):
        save(manager, step)
    assert steps(manager) == [1, 3, 4]
    assert "step 1 is kept: guard: mine" in caplog.text
    manager.hooks.unregister_hook("guard")
    save(manager, 5)
    assert steps(manager) == [4, 5]


@pytest.mark.parametrize("event", [HookEvent.BEFORE_DELETE, HookEvent.AFTER_DELETE])
def test_a_hook_that_raises(
    manager: CheckpointManager, event: HookEvent, caplog: pytest.LogCaptureFixture
) -> None:
    @hook(event, name="bad", on_error="raise")
    def bad(context: HookContext) -> None:
        raise RuntimeError("boom")

    manager.hooks.register_hook(bad)
    for step in range(4):
        save(manager, step)
    # What cannot be asked about is kept; what is deleted already stays so.
    assert steps(manager) == ([0, 1, 2, 3] if event is HookEvent.BEFORE_DELETE else [2, 3])
    assert "boom" in caplog.text
    manager.hooks.unregister_hook("bad")
    save(manager, 4)
    assert steps(manager) == [3, 4]
    assert manager.plan_prune().empty


def test_the_newest_is_never_deleted(store: ScriptedStore) -> None:
    with CheckpointManager(store, experiment="x", metric="loss", retention=[KeepBest(1)]) as manager:
        for step, loss in enumerate([0.1, 0.5, 0.9]):
            save(manager, step, metrics={"loss": loss})
            assert manager.latest().step == step
        assert steps(manager) == [0, 2]


def test_nothing_old_is_deleted_where_the_new_one_failed(
    manager: CheckpointManager, store: ScriptedStore
) -> None:
    for step in range(3):
        save(manager, step)

    def script(operation: str, key: str, when: str) -> None:
        if operation == "create" and key.startswith("packs/"):
            raise StoreError("no room", kind="full")

    store.script = script
    for step in (3, 4, 5):
        assert manager.save(state(step), step=step).exception(60) is not None
    store.script = None
    assert steps(manager) == [1, 2]
    save(manager, 6)
    assert steps(manager) == [2, 6]


def test_what_an_interruption_left_in_the_trash_goes_with_the_next(
    manager: CheckpointManager, store: ScriptedStore, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(2):
        manager.save({"w": np.full(50, step)}, step=step, wait=True)

    def script(operation: str, key: str, when: str) -> None:
        if operation == "move" and key.startswith("packs/"):
            raise StoreError("the disk is gone", kind="io")

    store.script = script
    save(manager, 2)
    assert "old checkpoints could not be deleted: the disk is gone" in caplog.text
    store.script = None
    assert steps(manager) == [1, 2]  # forgotten, and its bytes still there
    assert len(list(store.list("trash"))) == 1
    save(manager, 3)
    assert list(store.list("trash")) == []
    assert manager.plan_prune().empty
    assert manager.verify().ok


def test_in_a_new_process_it_goes_on_where_the_last_one_was(store: ScriptedStore) -> None:
    for start in (0, 3, 6):
        with CheckpointManager(store, experiment="x", retention=[KeepLast(2)]) as manager:
            if start:
                manager.load()
            for step in range(start, start + 3):
                save(manager, step)
            assert steps(manager) == [start + 1, start + 2]
            assert manager.plan_prune().empty


def test_a_damaged_pin_stops_deleting(manager: CheckpointManager, store: ScriptedStore) -> None:
    save(manager, 0)
    manager.pin("latest")
    key = next(info.key for info in store.list("refs"))
    store.put(key, b"{}")
    for step in range(1, 4):
        save(manager, step)
    assert steps(manager) == [0, 1, 2, 3]
    assert all(key in str(error) for _, error in manager._saver.unfinished)
    manager.pin("step=0")
    save(manager, 4)
    assert steps(manager) == [0, 3, 4]


def test_a_damaged_manifest_stops_reclaiming_and_no_save(
    manager: CheckpointManager, store: ScriptedStore
) -> None:
    with CheckpointManager(store, experiment="other") as other:
        hurt = save(other, 1)
    data = store.get(hurt.key)
    store.put(hurt.key, data[:-1])
    for step in range(4):
        save(manager, step)
    assert steps(manager) == [2, 3]
    assert len(manager.failures) == 0
    assert "not known what the damaged manifest" in str(manager._saver.unfinished[0][1])
    assert manager.verify("latest").ok
    store.put(hurt.key, data)
    save(manager, 4)
    assert list(store.list("trash")) == []


def test_with_a_rewrite_the_next_save_still_dedupes(store: ScriptedStore) -> None:
    """Of 4 MiB one is never changed: the first pack comes to be mostly dead and is rewritten."""
    rng = np.random.default_rng(0)
    frozen = rng.integers(0, 255, 1 << 20, np.uint8)
    with CheckpointManager(store, experiment="x", retention=[KeepLast(1)]) as manager:
        for step in range(4):
            tuned = rng.integers(0, 255, 3 << 20, np.uint8)
            saved = manager.save({"frozen": frozen, "tuned": tuned}, step=step, wait=True).result()
            if step:
                assert saved.written_bytes < 3.1 * (1 << 20)
            loaded = manager.load()
            np.testing.assert_array_equal(loaded["frozen"], frozen)
            np.testing.assert_array_equal(loaded["tuned"], tuned)
            assert manager.verify().ok
            assert manager.plan_prune().empty
        assert any("-r1." in info.key for info in store.list("packs"))
        assert sum(info.size for info in store.list("packs")) < 4.1 * (1 << 20)


def test_stale_temporaries_are_swept_once(store: ScriptedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[float] = []
    monkeypatch.setattr(store, "sweep", lambda older_than: swept.append(older_than) or 0)
    with CheckpointManager(store, experiment="x", retention=[KeepLast(1)]) as manager:
        for step in range(3):
            save(manager, step)
    assert swept == [24 * 3600.0]


def test_what_came_and_went_between_two_deletions_is_reclaimed(store: ScriptedStore) -> None:
    """At its save nothing is deleted, at the next one it is itself: no census ever saw it stand."""
    with CheckpointManager(store, experiment="x", retention=[KeepEvery(steps=2), KeepLast(1)]) as manager:
        for step in range(11):
            save(manager, step)
        assert steps(manager) == [0, 2, 4, 6, 8, 10]
        assert len(list(store.list("packs"))) == 6
        assert manager.verify().ok


def test_a_few_of_very_many_wait_in_the_trash(store: ScriptedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """To find their bytes all names have to be gone through: not for each of them, then."""
    monkeypatch.setattr(workspace_module, "_FOR_EACH", 2)
    waiting = []
    with CheckpointManager(store, experiment="x", retention=[KeepEvery(steps=2), KeepLast(1)]) as manager:
        for step in range(30):
            save(manager, step)
            waiting.append(len(list(store.list("trash"))))
            assert steps(manager) == [each for each in range(step + 1) if each % 2 == 0 or each == step]
        assert 1 < max(waiting) <= 8
        assert waiting.count(0) > 8
        assert len(list(store.list("packs"))) == len(steps(manager)) + waiting[-1]
        manager.prune()
        assert list(store.list("trash")) == []
        assert len(list(store.list("packs"))) == len(steps(manager))
        assert manager.verify().ok


@pytest.mark.parametrize("few", [0, 100])
def test_what_others_forgot_is_noticed_before_anything_goes(
    store: ScriptedStore, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(retaining_module, "_FEW", few)
    with (
        CheckpointManager(store, experiment="x", retention=[KeepLast(2), KeepEvery(steps=4)]) as manager,
        CheckpointManager(store, experiment="x", catalog="sqlite://") as person,
    ):
        for step in range(1, 8):
            save(manager, step)
        assert steps(manager) == [4, 6, 7]
        person.forget("step=7")
        save(manager, 9)
        assert steps(manager) == [4, 6, 9]
        assert set(manager._retention._remembered) == {c.id for c in manager.checkpoints()[1:]}


def test_tags_that_saves_set_cost_no_look_at_all_there_is(store: ScriptedStore) -> None:
    """Tags are read again after each, and nothing else is listed."""
    listed: list[str] = []
    with CheckpointManager(store, experiment="x", retention=[KeepEvery(steps=1), KeepTagged()]) as manager:
        save(manager, 0, tags=["newest"])
        store.script = lambda operation, key, when: listed.append(key) if operation == "list" else None
        for step in range(1, 5):
            save(manager, step, tags=["newest"])
        store.script = None
        assert set(listed) == {"refs/x"}
        assert len(manager._retention._remembered) == 1
