"""Prune rewrites half-dead packs: all that lives still loads, is still known, and stays reachable in one step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ckpt_core import CorruptionError, StoreError
from ckpt_core.maintenance.deletion import Pruned, execute_prune
from ckpt_core.maintenance.prune import plan_prune
from ckpt_core.maintenance.rewriting import rebased
from ckpt_core.maintenance.verify import verify
from ckpt_core.repository import Committed, Repository, layout
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


def big(*values: int) -> np.ndarray[Any, Any]:
    """A tensor with a quarter of a megabyte for each value: 64 chunks each, all different."""
    count = MEGABYTE // 4
    return np.concatenate(
        [np.random.default_rng(value).integers(0, 255, count, np.uint8) for value in values]
    )


def half_dead(repository: Repository) -> tuple[Committed, Committed]:
    """Two checkpoints; after the first is forgotten, its pack of 4 MiB is needed for one quarter."""
    return tuple(series(repository, {"w": big(*range(16))}, {"w": big(*range(4), *range(100, 112))}))  # type: ignore[return-value]


def test_a_half_dead_pack_is_rewritten_and_all_that_lives_still_loads(repository: Repository) -> None:
    first, second = half_dead(repository)
    old = first.packs[0][0]
    assert plan_prune(repository).empty
    repository.forget(first.key)
    plan = plan_prune(repository)
    assert plan.rewrites == ((old, MEGABYTE, 3 * MEGABYTE),)
    assert plan.packs == ()
    before = sum(info.size for info in repository.store.list("packs"))
    pruned = execute_prune(repository, plan)
    assert (pruned.rewritten, pruned.freed) == (1, 3 * MEGABYTE)
    assert before - sum(info.size for info in repository.store.list("packs")) > 2.9 * MEGABYTE
    assert layout.pack_key(old) not in packs(repository)
    assert layout.pack_key(old.replace("-0-0.", "-0-0-r1.")) in packs(repository)
    for mode in ("full", "lazy"):
        loaded = load(repository, second.key, verify=mode)
        np.testing.assert_array_equal(loaded["w"], big(*range(4), *range(100, 112)))
    report = verify(repository)
    assert report.ok
    assert report.packs == 3  # with the one that is named and no longer stands
    assert plan_prune(repository).empty


def test_a_rewritten_pack_is_a_valid_pack_of_its_own(repository: Repository, tmp_path: Any) -> None:
    from safetensors.numpy import load_file

    first, _ = half_dead(repository)
    repository.forget(first.key)
    prune(repository)
    (key,) = (key for key in packs(repository) if key.endswith("-r1.safetensors"))
    path = tmp_path / "pack.safetensors"
    path.write_bytes(repository.store.get(key))
    (tensor,) = load_file(path).values()
    np.testing.assert_array_equal(tensor, big(*range(4)))


def test_a_later_save_takes_the_moved_chunks_for_known(repository: Repository) -> None:
    first, second = half_dead(repository)
    repository.forget(first.key)
    prune(repository)
    again = commit(
        repository, {"w": big(*range(4), *range(100, 112))}, 3, rebased(repository, second.manifest)
    )
    assert again.manifest.written_bytes == 0
    assert all(layout.pack_key(name) in packs(repository) for name, _ in again.packs)
    np.testing.assert_array_equal(load(repository, again.key)["w"], load(repository, second.key)["w"])


def test_without_a_rewrite_a_base_is_taken_as_it_is(repository: Repository) -> None:
    first, _ = half_dead(repository)
    assert rebased(repository, first.manifest) is first.manifest


def test_a_base_whose_packs_are_gone_is_taken_as_it_is(repository: Repository) -> None:
    first, _ = half_dead(repository)
    repository.store.delete(layout.pack_key(first.packs[0][0]))
    assert rebased(repository, first.manifest) is first.manifest
    assert commit(repository, {"w": rows(1)}, 5, first.manifest).manifest.written_bytes > 0


def test_rewrites_of_rewrites_leave_one_step_for_readers(repository: Repository) -> None:
    """A quarter is left after the first, half of that after the second. Old manifests are never touched."""
    states = [
        {"w": big(*range(32))},
        {"w": big(*range(12), *range(100, 120))},
        {"w": big(*range(5), *range(200, 227))},
    ]
    made = series(repository, *states)
    repository.forget(made[0].key)
    assert prune(repository).rewritten == 1
    rebasing = commit(repository, {"w": big(*range(3), 250)}, 5, rebased(repository, made[2].manifest))
    repository.forget(made[1].key)
    plan = plan_prune(repository)
    assert [name.endswith("-r1.safetensors") for name, _, _ in plan.rewrites] == [True]
    execute_prune(repository, plan)
    assert next(key for key in packs(repository) if "-r" in key).endswith("-r2.safetensors")
    original = made[0].packs[0][0]
    document = repository.forward(original)
    assert {row.pack for row in document.rows} == {original.replace("-0-0.", "-0-0-r2.")}
    for committed, state in ((made[2], states[2]), (rebasing, {"w": big(*range(3), 250)})):
        store = repository.store
        assert isinstance(store, CountingStore)
        store.reset()
        np.testing.assert_array_equal(load(repository, committed.key)["w"], state["w"])
        assert sum(key.endswith(".forward.json") for key in store.objects_read()) <= 1
    assert verify(repository).ok
    # And when nobody needs them any more, everything goes: packs, rewritten packs, forwardings.
    for committed in (made[2], rebasing):
        repository.forget(committed.key)
    prune(repository)
    assert packs(repository) == set()
    assert forwards(repository) == set()
    assert list(repository.store.list("trash")) == []


def test_forwardings_stay_as_long_as_somebody_needs_them(repository: Repository) -> None:
    first, second = half_dead(repository)
    repository.forget(first.key)
    prune(repository)
    third = commit(repository, {"w": big(*range(4))}, 3, rebased(repository, second.manifest))
    assert len(forwards(repository)) == 1
    repository.forget(second.key)
    pruned = prune(repository)
    assert forwards(repository) == set()  # the third names the new pack by its own name
    assert pruned.packs == 1
    np.testing.assert_array_equal(load(repository, third.key)["w"], big(*range(4)))


def test_small_gains_are_not_worth_a_rewrite(repository: Repository) -> None:
    first, second = series(repository, {"w": rows(*range(200))}, {"w": rows(1, *range(50, 60))})
    repository.forget(first.key)
    assert first.packs[0][1] < MEGABYTE
    assert plan_prune(repository).rewrites == ()
    assert load(repository, second.key)["w"].size == 11 * CHUNK


def test_a_large_header_is_not_mistaken_for_dead_bytes(repository: Repository) -> None:
    """Thousands of tiny tensors: the header outweighs them. Rewriting would gain nothing, again and again."""
    state = {
        f"layer.{i:05}.with.a.long.name.to.fill.the.header": np.full(2, i, np.int16) for i in range(9000)
    }
    (only,) = series(repository, state)
    record = only.manifest.packs[0]
    assert record.size - 9000 * 4 > MEGABYTE
    assert record.header_size > record.size / 2
    assert plan_prune(repository).empty


def test_a_large_pack_with_one_tiny_tensor_is_rewritten_at_its_true_size() -> None:
    """The room kept for the header follows from the tensors, not from the shortest chunk."""
    repository = new_repository(MemoryStore(), MEGABYTE)
    whole = np.random.default_rng(0).integers(0, 255, 72 * MEGABYTE, np.uint8)
    first = commit(repository, {"w": whole, "tiny": np.ones(1, np.uint8)}, 0)
    kept = whole.copy()
    kept[34 * MEGABYTE :] += 1
    second = commit(repository, {"w": kept, "tiny": np.ones(1, np.uint8)}, 1, first.manifest)
    repository.forget(first.key)
    prune(repository)
    (key,) = (key for key in packs(repository) if "-r1." in key)
    assert repository.store.info(key).size < 34.1 * MEGABYTE
    np.testing.assert_array_equal(load(repository, second.key)["w"], kept)


def test_a_damaged_chunk_is_not_moved_and_the_rest_is_done(repository: Repository) -> None:
    first, second = half_dead(repository)
    (alone,) = series(repository, {"v": rows(7, 8, 9)})
    repository.forget(first.key)
    repository.forget(alone.key)
    key = layout.pack_key(first.packs[0][0])
    data = bytearray(repository.store.get(key))
    data[second.manifest.tensors[0].shards[0].chunks[0].offset] ^= 1
    repository.store.put(key, bytes(data))
    with pytest.raises(CorruptionError, match="is damaged") as caught:
        prune(repository)
    assert caught.value.key == key
    assert key in packs(repository)
    assert layout.pack_key(alone.packs[0][0]) not in packs(repository)
    assert not any("-r1" in name for name in packs(repository))
    assert forwards(repository) == set()


def test_an_interrupted_rewrite_is_taken_up_again() -> None:
    """The new pack was written and the forwarding was not: the copy that is there is used."""
    store = ScriptedStore(MemoryStore())
    repository = new_repository(store)
    first, second = half_dead(repository)
    repository.forget(first.key)

    def script(operation: str, key: str, when: str) -> None:
        if operation == "put" and key.endswith(layout.FORWARD_SUFFIX):
            raise StoreError("interrupted", kind="io")

    store.script = script
    with pytest.raises(StoreError):
        prune(repository)
    store.script = None
    assert verify(repository).ok
    assert len(packs(repository)) == 3
    created: list[str] = []
    store.script = lambda operation, key, when: created.append(key) if operation == "create" else None
    assert prune(repository).rewritten == 1
    assert created == []
    assert len(packs(repository)) == 2
    np.testing.assert_array_equal(load(repository, second.key)["w"], big(*range(4), *range(100, 112)))


def test_an_interrupted_rewrite_that_lacks_what_is_needed_is_not_used() -> None:
    """Between the two prunes a save has named a chunk that was dead before."""
    store = ScriptedStore(MemoryStore())
    repository = new_repository(store)
    first, second = half_dead(repository)
    repository.forget(first.key)

    def script(operation: str, key: str, when: str) -> None:
        if operation == "put" and key.endswith(layout.FORWARD_SUFFIX):
            raise StoreError("interrupted", kind="io")

    store.script = script
    with pytest.raises(StoreError):
        prune(repository)
    store.script = None
    third = commit(repository, {"w": big(*range(6))}, 3, first.manifest)
    assert third.manifest.written_bytes == 0
    assert prune(repository).rewritten == 0
    np.testing.assert_array_equal(load(repository, third.key)["w"], big(*range(6)))
    np.testing.assert_array_equal(load(repository, second.key)["w"], big(*range(4), *range(100, 112)))
    assert verify(repository).ok


@pytest.mark.parametrize("orphan_seconds", [-1, 3600])
def test_what_another_prune_rewrote_for_a_save_that_the_plan_does_not_know_is_kept(
    monkeypatch: pytest.MonkeyPatch, orphan_seconds: float
) -> None:
    """Between the plan's listing of manifests and that of packs, a save names an old pack whose first owner goes,
    and another prune rewrites it. Neither the new pack nor the forwarding to it may go."""
    monkeypatch.setattr("ckpt_core.maintenance.prune._REWRITE_AT_LEAST", CHUNK)
    store = ScriptedStore(MemoryStore())
    repository = new_repository(store)
    others = Repository.open(store.inner)
    first = commit(repository, {"w": rows(1, 2, 3, 4, 5)}, 1)
    saved: list[Committed] = []

    def act() -> None:
        saved.append(commit(others, {"w": rows(3)}, 2, first.manifest))
        others.forget(first.key)
        assert prune(others).rewritten == 1

    store.once(lambda operation, key, when: (operation, key) == ("open", first.key), act)
    plan = plan_prune(repository, orphan_seconds=orphan_seconds)
    assert store.done
    assert plan.forwards, "the plan does not know that anybody needs the forwarding"
    execute_prune(repository, plan)
    assert load(others, saved[0].key)["w"].tolist() == rows(3).tolist()
    assert verify(others).ok
    prune(others)
    assert load(others, saved[0].key)["w"].tolist() == rows(3).tolist()
