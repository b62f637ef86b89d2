"""Prune: what it finds dead, half-dead or too young, what it does, and that all that lives still loads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ckpt_core import CkptError, CorruptionError, FormatError, NotFoundError, StoreError
from ckpt_core.maintenance.census import Census, live_keys
from ckpt_core.maintenance.deletion import Pruned, execute_prune
from ckpt_core.maintenance.prune import plan_prune, plan_reclaim
from ckpt_core.maintenance.rewriting import rebased
from ckpt_core.maintenance.verify import verify
from ckpt_core.repository import Committed, References, Repository, layout
from ckpt_core.stores import MemoryStore
from contract.store_case import CHUNK, commit, load, new_repository
from crash.wrappers import CountingStore, ScriptedStore

MEGABYTE = 1 << 20


@pytest.fixture
def repository() -> Repository:
    return new_repository(CountingStore(MemoryStore()))


def packs(repository: Repository) -> set[str]:
    return {info.key for info in repository.store.list("packs") if info.key.endswith(".safetensors")}


def forwards(repository: Repository) -> set[str]:
    return {info.key for info in repository.store.list("packs") if info.key.endswith(".json")}


def prune(repository: Repository, **options: Any) -> Pruned:
    return execute_prune(repository, plan_prune(repository, **options))


def rows(*values: int) -> np.ndarray[Any, Any]:
    """A tensor with one chunk for each value."""
    return np.repeat(np.array(values, np.uint8), CHUNK)


def series(repository: Repository, *states: Any) -> list[Committed]:
    """Checkpoints, each deduplicated against the one before."""
    made: list[Committed] = []
    for step, state in enumerate(states):
        base = rebased(repository, made[-1].manifest) if made else None
        made.append(commit(repository, state, step, base))
    return made


# -- plain garbage --------------------------------------------------------------------------------


def test_nothing_to_do(repository: Repository) -> None:
    series(repository, {"w": rows(1, 2)}, {"w": rows(1, 3)})
    plan = plan_prune(repository)
    assert plan.empty
    assert plan.frees == 0
    assert execute_prune(repository, plan) == Pruned(0, 0, 0, 0, 0)


def test_a_plan_changes_nothing(repository: Repository) -> None:
    first, _ = series(repository, {"w": rows(1, 2)}, {"w": rows(3, 4)})
    repository.forget(first.key)
    store = repository.store
    before = {info.key: info for folder in ("packs", "trash", "checkpoints") for info in store.list(folder)}
    plan_prune(repository)
    assert before == {i.key: i for folder in ("packs", "trash", "checkpoints") for i in store.list(folder)}


def test_the_packs_of_a_forgotten_checkpoint_go_at_once(repository: Repository) -> None:
    first, second = series(repository, {"w": rows(1, 2)}, {"w": rows(3, 4)})
    size = first.packs[0][1]
    repository.forget(first.key)
    plan = plan_prune(repository)
    assert plan.packs == ((first.packs[0][0], size),)
    assert plan.frees == size
    assert not plan.empty
    assert execute_prune(repository, plan) == Pruned(1, 1, 0, size, 0)
    assert packs(repository) == {layout.pack_key(second.packs[0][0])}
    assert list(repository.store.list("trash")) == []
    assert load(repository, second.key)["w"].tolist() == rows(3, 4).tolist()


def test_what_others_share_stays(repository: Repository) -> None:
    first, second = series(repository, {"w": rows(1, 2)}, {"w": rows(1, 3)})
    repository.forget(first.key)
    assert plan_prune(repository).packs == ()
    prune(repository)
    assert len(packs(repository)) == 2
    assert load(repository, second.key)["w"].tolist() == rows(1, 3).tolist()


def test_a_pack_of_nobody_waits_until_it_is_old(repository: Repository) -> None:
    (only,) = series(repository, {"w": rows(1)})
    repository.store.delete(only.key)  # as if its save had died before the commit
    plan = plan_prune(repository)
    assert plan.young == (only.packs[0][0],)
    assert plan.packs == ()
    assert plan.empty
    assert plan_prune(repository, orphan_seconds=-1).packs == (only.packs[0],)
    assert prune(repository, orphan_seconds=-1).packs == 1
    assert packs(repository) == set()


def test_the_store_is_asked_for_its_clock_only_where_ages_matter(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking means writing, and a plan must be possible on a store that can only be read."""
    first, _ = series(repository, {"w": rows(1)}, {"w": rows(2)})
    repository.forget(first.key)
    monkeypatch.setattr(repository.store, "now", lambda: pytest.fail("the clock was read"))
    assert len(plan_prune(repository).packs) == 1


def test_a_pack_shared_through_several_forgotten_ones_goes_with_the_last(repository: Repository) -> None:
    first, second, third = series(repository, {"w": rows(1, 2)}, {"w": rows(1, 3)}, {"w": rows(5, 6)})
    repository.forget(first.key)
    prune(repository)  # its owner is gone for good, and its pack still needed
    repository.forget(second.key)
    assert prune(repository).packs == 2
    assert packs(repository) == {layout.pack_key(third.packs[0][0])}


def test_tags_and_pins_of_what_is_gone_go_too(repository: Repository) -> None:
    first, second = series(repository, {"w": rows(1)}, {"w": rows(2)})
    references = References(repository.store)
    for committed, tag in ((first, "old"), (second, "new")):
        references.set_tag("digits", tag, committed.manifest.id)
        references.pin("digits", committed.manifest.id)
    repository.forget(first.key)
    plan = plan_prune(repository)
    assert len(plan.references) == 2
    references.set_tag("digits", "old", second.manifest.id)  # moved since the plan
    execute_prune(repository, plan)
    assert references.of_experiment("digits") == (
        {"old": second.manifest.id, "new": second.manifest.id},
        {second.manifest.id},
    )


def test_a_damaged_manifest_stops_a_prune_since_its_needs_are_unknown(repository: Repository) -> None:
    first, second = series(repository, {"w": rows(1, 2)}, {"w": rows(1, 3)})
    repository.forget(first.key)
    store = repository.store
    store.put(second.key, store.get(second.key)[:-1])
    with pytest.raises(CorruptionError, match="not known what the damaged manifest") as caught:
        plan_prune(repository)
    assert caught.value.key == second.key
    assert len(packs(repository)) == 2


def test_a_damaged_manifest_in_the_trash_stops_nothing(repository: Repository) -> None:
    first, second = series(repository, {"w": rows(1, 2)}, {"w": rows(3)})
    trashed = repository.forget(first.key)
    repository.store.put(trashed, b"{}")
    assert prune(repository).packs == 1
    assert packs(repository) == {layout.pack_key(second.packs[0][0])}


def test_a_manifest_that_a_crash_left_in_both_places_is_alive(repository: Repository) -> None:
    (only,) = series(repository, {"w": rows(1, 2)})
    store = repository.store
    store.put(layout.trash_key(only.key), store.get(only.key))
    prune(repository)
    assert load(repository, only.key)["w"].tolist() == rows(1, 2).tolist()
    assert list(store.list("trash")) == []


def big(*values: int) -> np.ndarray[Any, Any]:
    """A tensor with a quarter of a megabyte for each value: 64 chunks each, all different."""
    count = MEGABYTE // 4
    return np.concatenate(
        [np.random.default_rng(value).integers(0, 255, count, np.uint8) for value in values]
    )


# -- what retention does --------------------------------------------------------------------------


def reclaim(repository: Repository, census: Census, *trashed: str) -> Pruned:
    census.update(live_keys(repository))
    plan = plan_reclaim(repository, census, trashed, ())
    return execute_prune(repository, plan, census=census, sweep=False)


def test_reclaiming_gives_what_a_whole_prune_would(repository: Repository) -> None:
    states = [{"w": big(*range(start, start + 12))} for start in range(0, 40, 4)]
    made = series(repository, *states)
    census = Census.take(repository)
    for committed in made[:-1]:
        trashed = repository.forget(committed.key)
        reclaim(repository, census, trashed)
        assert plan_prune(repository).empty, "the census lost its way"
        assert verify(repository).ok
        again = Census.take(repository)
        assert (again.sizes, again.forwards, again.keys) == (census.sizes, census.forwards, census.keys)
    np.testing.assert_array_equal(load(repository, made[-1].key)["w"], states[-1]["w"])
    assert len(packs(repository)) <= 3


def test_reclaiming_leaves_what_others_have_forgotten_alone(repository: Repository) -> None:
    mine = commit(repository, {"w": rows(1)}, 1)
    theirs = commit(repository, {"w": rows(2)}, 1, experiment="other")
    census = Census.take(repository)
    repository.forget(theirs.key)
    trashed = repository.forget(mine.key)
    assert reclaim(repository, census, trashed).packs == 1
    assert packs(repository) == {layout.pack_key(theirs.packs[0][0])}
    assert [info.key for info in repository.store.list("trash")] == [layout.trash_key(theirs.key)]


def test_reclaiming_reads_no_manifest_but_the_new_and_the_forgotten(repository: Repository) -> None:
    made = series(repository, *({"w": rows(i, 99)} for i in range(20)))
    census = Census.take(repository)
    store = repository.store
    assert isinstance(store, CountingStore)
    newest = commit(repository, {"w": rows(50, 99)}, 30, made[-1].manifest)
    trashed = repository.forget(made[0].key)
    store.reset()
    reclaim(repository, census, trashed)
    read = {key for key in store.objects_read() if key.endswith(".json")}
    assert read == {newest.key, trashed}


def test_a_census_that_others_overtook_says_so(repository: Repository) -> None:
    first, _ = series(repository, {"w": rows(1)}, {"w": rows(2)})
    census = Census.take(repository)
    repository.forget(first.key)
    prune(repository)
    with pytest.raises(NotFoundError):
        census.update(live_keys(repository))


# -- after an interruption ------------------------------------------------------------------------


def test_a_pack_left_out_of_circulation_is_deleted_by_the_next_prune(repository: Repository) -> None:
    first, _ = series(repository, {"w": rows(1)}, {"w": rows(2)})
    name, size = first.packs[0]
    repository.forget(first.key)
    repository.store.move(layout.pack_key(name), layout.withdrawn_key(name))
    plan = plan_prune(repository)
    assert plan.withdrawn == ((name, size),)
    assert plan.frees == size
    assert execute_prune(repository, plan).freed == size
    assert list(repository.store.list("trash")) == []


def test_a_pack_left_out_of_circulation_is_put_back_if_it_is_needed(repository: Repository) -> None:
    (only,) = series(repository, {"w": rows(1)})
    name = only.packs[0][0]
    repository.store.move(layout.pack_key(name), layout.withdrawn_key(name))
    plan = plan_prune(repository)
    assert verify(repository).ok, "a load reads it where it is, and so does verify"
    assert plan.restores == (name,)
    assert plan.withdrawn == ()
    assert not plan.empty
    execute_prune(repository, plan)
    assert load(repository, only.key)["w"].tolist() == rows(1).tolist()
    assert plan_prune(repository).empty


@pytest.mark.parametrize("error", [FormatError("upgrade"), StoreError("the disk is gone")])
def test_where_a_new_manifest_cannot_be_read_nothing_goes(error: CkptError) -> None:
    """It was published since the plan; what it names is not known."""
    store = ScriptedStore(MemoryStore())
    repository = new_repository(store)
    first, _ = series(repository, {"w": rows(1)}, {"w": rows(2)})
    repository.forget(first.key)
    plan = plan_prune(repository)
    newest = commit(repository, {"w": rows(1, 5)}, 3, first.manifest)

    def script(operation: str, key: str, when: str) -> None:
        if operation == "open" and key == newest.key:
            raise error

    store.script = script
    with pytest.raises(type(error)):
        execute_prune(repository, plan)
    store.script = None
    assert load(repository, newest.key)["w"].tolist() == rows(1, 5).tolist()
    assert [info.key for info in store.list("trash")] == [layout.trash_key(first.key)]
