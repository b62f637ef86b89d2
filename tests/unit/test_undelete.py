"""Forgotten checkpoints come back until their grace has ended, whole and with their tags; nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, KeepLast, NotFoundError, StoreError, UsageError
from ckpt_core.maintenance.deletion import MAINTENANCE, execute_prune
from ckpt_core.maintenance.prune import plan_prune
from ckpt_core.maintenance.undelete import bring_back
from ckpt_core.maintenance.verify import verify
from ckpt_core.repository import GRACE_SECONDS, Leases, Repository, layout
from contract.store_case import CHUNK, commit, load, new_repository
from crash.wrappers import ScriptedStore
from stateful.actors import ClockedStore

NO_CATALOG = "sqlite:////proc/nowhere/catalog.db"


def rows(*values: int) -> np.ndarray[Any, Any]:
    return np.repeat(np.array(values, np.uint8), CHUNK)


@pytest.fixture
def store() -> ClockedStore:
    return ClockedStore()


@pytest.fixture
def repository(store: ClockedStore, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setattr("ckpt_core.maintenance.prune._REWRITE_AT_LEAST", CHUNK)
    return new_repository(store)


def prune(repository: Repository, **options: Any) -> Any:
    return execute_prune(repository, plan_prune(repository, orphan_seconds=-1, **options))


@pytest.fixture
def manager(repository: Repository) -> Any:
    with CheckpointManager(repository.store, experiment="x", catalog="sqlite://") as manager:
        for step in (1, 2, 3):
            manager.save({"w": rows(0, step)}, step=step, tags=[f"t{step}"], wait=True)
        yield manager


# -- what a prune leaves --------------------------------------------------------------------------


def test_what_was_forgotten_with_grace_survives_prunes_and_comes_back(
    store: ClockedStore, repository: Repository
) -> None:
    first = commit(repository, {"w": rows(1, 2, 3, 4)}, 1)
    second = commit(repository, {"w": rows(1)}, 2, first.manifest)
    trashed = repository.forget(first.key, grace=100)
    for _ in range(2):
        plan = plan_prune(repository, orphan_seconds=-1)
        assert plan.empty
        assert [key for key, _ in plan.granted] == [trashed]
        execute_prune(repository, plan)
    store.time += 99
    prune(repository)
    assert bring_back(repository, trashed).manifest == first.manifest
    assert load(repository, first.key)["w"].tolist() == rows(1, 2, 3, 4).tolist()
    assert list(store.list("trash")) == []
    assert prune(repository).packs == 0
    assert load(repository, second.key)["w"].tolist() == rows(1).tolist()


def test_when_the_grace_has_ended_it_goes_and_does_not_come_back(
    store: ClockedStore, repository: Repository
) -> None:
    first = commit(repository, {"w": rows(1)}, 1)
    trashed = repository.forget(first.key, grace=100)
    store.time += 101
    assert bring_back(repository, trashed), "as long as no prune came"
    repository.forget(first.key, grace=100)
    store.time += 101
    assert prune(repository).packs == 1
    assert list(store.list("trash")) == []
    with pytest.raises(NotFoundError, match="cannot be brought back") as caught:
        bring_back(repository, trashed)
    assert caught.value.kind == "forgotten"


def test_a_prune_may_be_told_to_take_everything_now(store: ClockedStore, repository: Repository) -> None:
    first = commit(repository, {"w": rows(1)}, 1)
    repository.forget(first.key, grace=1e6)
    assert prune(repository, now=True).packs == 1
    assert list(store.list("trash")) == []


def test_that_holds_for_a_note_whose_manifest_never_came(store: ClockedStore, repository: Repository) -> None:
    first = commit(repository, {"w": rows(1)}, 1)
    repository.trash.grant(first.key, 1e6)
    prune(repository, now=True)
    assert list(store.list("trash")) == []
    assert load(repository, first.key)["w"].tolist() == rows(1).tolist()


def test_without_grace_it_goes_at_the_next_prune(repository: Repository) -> None:
    first = commit(repository, {"w": rows(1)}, 1)
    repository.forget(first.key)
    assert prune(repository).packs == 1


def test_a_clock_that_cannot_be_asked_deletes_nothing(
    store: ClockedStore, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = commit(repository, {"w": rows(1)}, 1)
    repository.forget(first.key, grace=1)
    store.time += 1000

    def refuse() -> float:
        raise StoreError("the store can only be read", kind="read-only")

    monkeypatch.setattr(store, "now", refuse)
    assert plan_prune(repository).packs == ()


def test_a_damaged_note_is_a_day_of_grace(store: ClockedStore, repository: Repository) -> None:
    first = commit(repository, {"w": rows(1)}, 1)
    trashed = repository.forget(first.key, grace=1)
    store.put(layout.grace_key(trashed), b"{}")
    store.time += GRACE_SECONDS - 1
    assert prune(repository).packs == 0
    store.time += 2
    assert prune(repository).packs == 1
    assert list(store.list("trash")) == []


def test_a_damaged_manifest_in_the_trash_does_not_stop_a_prune(
    store: ClockedStore, repository: Repository
) -> None:
    first = commit(repository, {"w": rows(1)}, 1)
    other = commit(repository, {"w": rows(2)}, 2)
    trashed = repository.forget(first.key, grace=1000)
    store.put(trashed, b"{}")
    repository.forget(other.key)
    assert prune(repository).packs >= 1


def test_a_note_without_its_manifest_goes_when_it_is_spent(
    store: ClockedStore, repository: Repository
) -> None:
    """A crash came between the note and the move: the checkpoint stands."""
    first = commit(repository, {"w": rows(1)}, 1)
    repository.trash.grant(first.key, 10)
    assert prune(repository).packs == 0
    assert len(list(store.list("trash"))) == 1
    store.time += 11
    prune(repository)
    assert list(store.list("trash")) == []
    assert load(repository, first.key)["w"].tolist() == rows(1).tolist()


def test_half_dead_packs_are_rewritten_with_what_can_be_brought_back(
    store: ClockedStore, repository: Repository
) -> None:
    first = commit(repository, {"w": rows(*range(10))}, 1)
    second = commit(repository, {"w": rows(1)}, 2, first.manifest)
    third = commit(repository, {"w": rows(2)}, 3, first.manifest)
    repository.forget(first.key)
    trashed = repository.forget(second.key, grace=100)
    assert prune(repository).rewritten == 1
    assert bring_back(repository, trashed)
    assert verify(repository).ok
    assert load(repository, second.key)["w"].tolist() == rows(1).tolist()
    assert load(repository, third.key)["w"].tolist() == rows(2).tolist()


def test_one_that_is_forgotten_while_a_prune_runs_keeps_its_grace() -> None:
    store = ScriptedStore(ClockedStore())
    repository = new_repository(store)
    first = commit(repository, {"w": rows(1)}, 1)
    commit(repository, {"w": rows(2)}, 2)
    repository.forget(first.key)
    plan = plan_prune(repository)
    others = Repository.open(store.inner)

    def act() -> None:
        store.inner.move(layout.trash_key(first.key), first.key)  # brought back, and forgotten once more
        others.forget(first.key, grace=1000)

    store.once(lambda operation, key, when: operation == "move" and when == "before", act)
    execute_prune(repository, plan)
    assert store.exists(layout.pack_key(first.packs[0][0]))
    assert bring_back(repository, layout.trash_key(first.key)).manifest.id == first.manifest.id


def test_one_that_is_forgotten_while_a_prune_looks_around_keeps_its_grace() -> None:
    """At whatever instant: a prune that reads the notes of grace before the trash deletes what has just got one."""
    for instant in range(1000):
        store = ScriptedStore(ClockedStore())
        repository = new_repository(store)
        first = commit(repository, {"w": rows(1)}, 1)
        commit(repository, {"w": rows(2)}, 2)
        others, left = Repository.open(store.inner), [instant]

        def now(operation: str, key: str, when: str, left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] < 0

        store.once(now, lambda others=others, key=first.key: others.forget(key, grace=1000))
        plan = plan_prune(repository)
        if left[0] >= 0:
            break
        assert plan.manifests == ()
        execute_prune(repository, plan)
        assert bring_back(repository, layout.trash_key(first.key)).manifest.id == first.manifest.id
    assert instant > 5


# -- bringing back --------------------------------------------------------------------------------


def test_it_waits_for_no_prune(repository: Repository) -> None:
    first = commit(repository, {"w": rows(1)}, 1)
    trashed = repository.forget(first.key, grace=100)
    with Leases(repository.store, "another machine/1/2/3").take("prune", lock=MAINTENANCE):
        with pytest.raises(StoreError, match="another prune") as caught:
            bring_back(repository, trashed)
        assert caught.value.kind == "locked"
    assert bring_back(repository, trashed)


def test_what_lost_a_pack_stays_in_the_trash(store: ClockedStore, repository: Repository) -> None:
    first = commit(repository, {"w": rows(1)}, 1)
    trashed = repository.forget(first.key, grace=100)
    store.delete(layout.pack_key(first.packs[0][0]))
    with pytest.raises(NotFoundError, match="cannot be brought back"):
        bring_back(repository, trashed)
    assert store.exists(trashed)
    assert list(store.list("leases")) == []


def test_the_manager_brings_back_tags_and_all(manager: CheckpointManager) -> None:
    forgotten = manager.forget("t2")
    manager.prune()
    with pytest.raises(NotFoundError):
        manager.load("step=2")
    assert manager.forgotten() == [c for c in manager.forgotten() if c.id == forgotten.id]
    back = manager.undelete("step=2")
    assert (back.id, back.tags) == (forgotten.id, ("t2",))
    assert [c.step for c in manager.checkpoints()] == [1, 2, 3]
    assert manager.load("t2")["w"].tolist() == rows(0, 2).tolist()
    assert manager.forgotten() == []
    assert manager.workspace.index.catalog().audit_log()[0].event == "undelete"


def test_a_tag_that_moved_meanwhile_stays_where_it_is(manager: CheckpointManager) -> None:
    manager.forget("t2")
    manager.tag("step=3", "t2")
    assert manager.undelete("step=2").tags == ()
    assert manager.resolve("t2").step == 3


@pytest.mark.parametrize(
    ("reference", "error"), [("step=9", NotFoundError), ("step=x", UsageError), ("abc", UsageError), ("01KZZZZZ", NotFoundError)]
)  # fmt: skip
def test_what_is_not_there_is_said(
    manager: CheckpointManager, reference: str, error: type[Exception]
) -> None:
    manager.forget("step=1")
    with pytest.raises(error):
        manager.undelete(reference)
    assert manager.undelete(manager.forgotten()[0].id[:20].lower()).step == 1
    with pytest.raises(NotFoundError, match="there are none"):
        manager.undelete("step=1")


def test_retention_leaves_what_somebody_may_bring_back(repository: Repository) -> None:
    options: dict[str, Any] = {"experiment": "x", "catalog": NO_CATALOG, "retention": [KeepLast(2)]}
    with CheckpointManager(repository.store, **options) as manager:
        for step in range(3):
            manager.save({"w": rows(0, step)}, step=step, wait=True)
        victim = manager.forget("step=1")
        for step in range(3, 8):
            manager.save({"w": rows(0, step)}, step=step, wait=True)
        assert manager._saver.unfinished == []
        assert [c.id for c in manager.forgotten()] == [victim.id]
        manager.undelete(victim.id)
        assert manager.load(victim.id)["w"].tolist() == rows(0, 1).tolist()
        assert manager.verify().ok
        manager.save({"w": rows(0, 8)}, step=8, wait=True)
        assert [c.step for c in manager.checkpoints()] == [1, 7, 8]
        lineage = manager.attempt.lineage
        assert [d.checkpoint.step for d in manager.plan_retention() if not d.keep] == [1]
    with CheckpointManager(repository.store, **options) as manager:
        manager.load()
        assert manager.attempt.lineage == lineage
        manager.save({"w": rows(0, 9)}, step=9, wait=True)
        assert [c.step for c in manager.checkpoints()] == [8, 9], "a later training decides about it anew"
        assert manager._saver.unfinished == []
        assert manager.verify().ok
