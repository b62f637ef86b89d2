"""Verify: every damage is found, told once, and put down to the checkpoints that it hurts, and to no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, HookEvent, NotFoundError, StoreError, clock
from ckpt_core.maintenance.deletion import execute_prune
from ckpt_core.maintenance.prune import plan_prune
from ckpt_core.maintenance.verify import Problem, verify
from ckpt_core.model import MetricPoint
from ckpt_core.repository import Committed, MetricSegments, References, Repository, layout
from ckpt_core.stores import MemoryStore
from contract.store_case import ATTEMPT, CHUNK, commit, new_repository
from crash.wrappers import CountingStore, ScriptedStore


def rows(*values: int) -> np.ndarray[Any, Any]:
    return np.repeat(np.array(values, np.uint8), CHUNK)


@pytest.fixture
def store() -> ScriptedStore:
    return ScriptedStore(MemoryStore())


@pytest.fixture
def repository(store: ScriptedStore) -> Repository:
    return new_repository(store)


@pytest.fixture
def pair(repository: Repository) -> tuple[Committed, Committed]:
    """Two checkpoints that share a chunk; each has one of its own."""
    first = commit(repository, {"w": rows(1, 2)}, 1)
    return first, commit(repository, {"w": rows(1, 3)}, 2, first.manifest)


def flip(repository: Repository, key: str, at: int) -> None:
    data = bytearray(repository.store.get(key))
    data[at] ^= 4
    repository.store.put(key, bytes(data))


def own_pack(committed: Committed) -> str:
    return f"packs/digits/{committed.manifest.id}-0-0.safetensors"


def chunk_at(committed: Committed, number: int) -> int:
    return committed.manifest.tensors[0].shards[0].chunks[number].offset


def ids(*checkpoints: Committed) -> tuple[str, ...]:
    return tuple(sorted(committed.manifest.id for committed in checkpoints))


def test_a_sound_store(repository: Repository, pair: tuple[Committed, Committed]) -> None:
    report = verify(repository)
    assert report.ok
    assert (report.checkpoints, report.packs, report.damaged) == (2, 2, ())
    assert report.bytes_read == sum(info.size for info in repository.store.list("packs"))
    headers = verify(repository, read_data=False)
    assert headers.ok
    assert headers.bytes_read == report.bytes_read - 3 * CHUNK


def test_an_empty_store(repository: Repository) -> None:
    assert verify(repository).ok


def test_a_damaged_chunk_hurts_those_who_share_it(
    repository: Repository, pair: tuple[Committed, Committed]
) -> None:
    first, second = pair
    flip(repository, own_pack(first), chunk_at(first, 0))
    report = verify(repository)
    assert report.damaged == ids(first, second)
    (problem,) = report.problems
    assert (problem.kind, problem.key, problem.checkpoints) == ("digest", own_pack(first), ids(first, second))
    assert "(w)" in problem.detail


def test_a_damaged_chunk_does_not_hurt_others_in_the_same_pack(
    repository: Repository, pair: tuple[Committed, Committed]
) -> None:
    first, _ = pair
    flip(repository, own_pack(first), chunk_at(first, 1))
    assert verify(repository).damaged == ids(first)


def test_damage_is_not_looked_for_where_only_headers_are_read(
    repository: Repository, pair: tuple[Committed, Committed]
) -> None:
    flip(repository, own_pack(pair[0]), chunk_at(pair[0], 1))
    assert verify(repository, read_data=False).ok


def test_a_damaged_header_hurts_all_who_need_the_pack(
    repository: Repository, pair: tuple[Committed, Committed]
) -> None:
    first, second = pair
    flip(repository, own_pack(first), 200)
    report = verify(repository, read_data=False)
    (problem,) = report.problems
    assert (problem.kind, problem.checkpoints) == ("header", ids(first, second))


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: data[:100], lambda data: b""]
)
def test_a_pack_of_the_wrong_length(
    repository: Repository, pair: tuple[Committed, Committed], change: Callable[[bytes], bytes]
) -> None:
    key = own_pack(pair[1])
    repository.store.put(key, change(repository.store.get(key)))
    assert verify(repository).damaged == ids(pair[1])


def test_a_missing_pack(repository: Repository, pair: tuple[Committed, Committed]) -> None:
    first, second = pair
    repository.store.delete(own_pack(first))
    report = verify(repository)
    assert report.problems == (
        Problem("missing", own_pack(first), "the pack is missing from the store", ids(first, second)),
    )


@pytest.mark.parametrize("hurt", [False, True])
def test_a_pack_that_a_killed_prune_took_out_is_looked_at_where_it_is(
    repository: Repository, pair: tuple[Committed, Committed], hurt: bool
) -> None:
    first, _ = pair
    if hurt:
        flip(repository, own_pack(first), chunk_at(first, 1))
    repository.store.move(own_pack(first), layout.withdrawn_key(first.packs[-1][0]))
    report = verify(repository)
    assert report.damaged == (ids(first) if hurt else ())
    assert [problem.key for problem in report.problems] == ([own_pack(first)] if hurt else [])
    assert report.packs == 2


def test_another_pack_in_its_place(repository: Repository, pair: tuple[Committed, Committed]) -> None:
    """Sound by itself, and yet not what the manifest names."""
    first, second = pair
    repository.store.put(own_pack(second), repository.store.get(own_pack(first)))
    report = verify(repository)
    assert report.damaged == ids(second)
    assert {problem.kind for problem in report.problems} == {"header", "missing"}


@pytest.mark.parametrize("size", [0, 10, -1])
def test_a_damaged_manifest(repository: Repository, pair: tuple[Committed, Committed], size: int) -> None:
    key = pair[1].key
    repository.store.put(key, repository.store.get(key)[:size])
    report = verify(repository)
    assert [(problem.kind, problem.key) for problem in report.problems] == [("manifest", key)]
    assert report.damaged == ids(pair[1])
    assert report.checkpoints == 1


def test_a_manifest_under_another_name(repository: Repository, pair: tuple[Committed, Committed]) -> None:
    first, second = pair
    repository.store.put(second.key, repository.store.get(first.key))
    assert verify(repository).damaged == ids(second)


def test_everything_beside_the_checkpoints_is_looked_at_too(repository: Repository) -> None:
    only = commit(repository, {"w": rows(1)}, 1)
    gone = commit(repository, {"w": rows(2)}, 2)
    References(repository.store).set_tag("digits", "t", only.manifest.id)
    point = MetricPoint("loss", 1, 0.5, clock.now(), 1)
    segment = MetricSegments(repository.store).append("digits", ATTEMPT, [point])
    trashed = repository.forget(gone.key)
    assert verify(repository).ok
    tag = next(info.key for info in repository.store.list("refs"))
    for key in (tag, segment, trashed, "store.json"):
        flip(repository, key, 20)
    report = verify(repository)
    assert sorted((problem.kind, problem.key) for problem in report.problems) == sorted(
        [("reference", tag), ("metrics", segment), ("manifest", trashed), ("store", "store.json")]
    )
    assert report.damaged == ()  # all checkpoints load


def test_an_orphan_is_no_damage_but_a_damaged_orphan_is(repository: Repository) -> None:
    only = commit(repository, {"w": rows(1)}, 1)
    repository.store.delete(only.key)
    assert verify(repository).ok
    flip(repository, own_pack(only), -1)
    report = verify(repository)
    assert [(problem.kind, problem.checkpoints) for problem in report.problems] == [("digest", ())]


def test_chosen_checkpoints_only(repository: Repository, pair: tuple[Committed, Committed]) -> None:
    first, second = pair
    flip(repository, own_pack(second), -1)
    assert verify(repository, keys=[first.key]).ok
    assert verify(repository, keys=[second.key]).damaged == ids(second)
    report = verify(repository, keys=[first.key])
    assert (report.checkpoints, report.packs) == (1, 1)
    with pytest.raises(NotFoundError):
        verify(repository, keys=[layout.manifest_key("digits", 9, first.manifest.id)])


def test_progress_comes_to_its_end(repository: Repository, pair: tuple[Committed, Committed]) -> None:
    seen: list[tuple[int, int]] = []
    verify(repository, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3 * CHUNK, 3 * CHUNK)
    assert seen == sorted(seen)


def test_what_the_disk_cannot_read_is_damage_and_the_rest_is_still_checked(
    repository: Repository, store: ScriptedStore, pair: tuple[Committed, Committed]
) -> None:
    first, second = pair
    bad = chunk_at(first, 1)

    def script(operation: str, key: str, when: str) -> None:
        name, *numbers = operation.split()
        if (
            name == "read"
            and key == own_pack(first)
            and int(numbers[0]) <= bad < int(numbers[0]) + int(numbers[1])
        ):
            raise StoreError("a bad sector", kind="io", key=key)

    store.script = script
    flip(repository, own_pack(second), -1)
    report = verify(repository)
    assert report.damaged == ids(first, second)
    assert {problem.detail for problem in report.problems if problem.key == own_pack(first)} == {
        "a bad sector"
    }


def test_a_pack_that_cannot_be_opened(
    repository: Repository, store: ScriptedStore, pair: tuple[Committed, Committed]
) -> None:
    def script(operation: str, key: str, when: str) -> None:
        if operation == "open" and key == own_pack(pair[1]):
            raise StoreError("permission denied", kind="permission", key=key)

    store.script = script
    report = verify(repository)
    assert [(problem.kind, problem.checkpoints) for problem in report.problems] == [
        ("permission", ids(pair[1]))
    ]


@pytest.mark.parametrize("operation", ["open", "read"])
def test_what_is_forgotten_and_pruned_meanwhile_is_no_damage(
    repository: Repository, store: ScriptedStore, pair: tuple[Committed, Committed], operation: str
) -> None:
    _, second = pair

    def others() -> None:
        repository.forget(second.key)
        execute_prune(repository, plan_prune(repository))

    key = own_pack(second)
    store.once(lambda what, at, when: what.startswith(operation) and at == key, others)
    report = verify(repository)
    assert store.done
    assert report.ok
    assert report.damaged == ()


def test_a_checkpoint_forgotten_between_listing_and_reading_is_passed_over(
    repository: Repository, store: ScriptedStore, pair: tuple[Committed, Committed]
) -> None:
    first, second = pair
    store.once(
        lambda what, at, when: what == "open" and at == first.key, lambda: repository.forget(second.key)
    )
    assert verify(repository).checkpoints == 1


def test_after_a_rewrite_chunks_are_followed_to_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckpt_core.maintenance import prune

    monkeypatch.setattr(prune, "_REWRITE_AT_LEAST", CHUNK)
    repository = new_repository(MemoryStore())
    first = commit(repository, {"w": rows(*range(10))}, 1)
    second = commit(repository, {"w": rows(1, 2, 77)}, 2, first.manifest)
    third = commit(repository, {"w": rows(2, 78)}, 3, first.manifest)
    repository.forget(first.key)
    assert execute_prune(repository, plan_prune(repository)).rewritten == 1
    assert verify(repository).ok
    target = next(info.key for info in repository.store.list("packs") if "-r1." in info.key)
    data = repository.store.get(target)
    at = data.index(bytes([1]) * CHUNK)
    flip(repository, target, at)
    report = verify(repository)
    assert report.damaged == ids(second)
    assert report.problems[0].key == target
    repository.store.put(target, data)
    forward = next(info.key for info in repository.store.list("packs") if info.key.endswith(".json"))
    flip(repository, forward, 60)
    report = verify(repository)
    assert report.damaged == ids(second, third)
    assert [problem.kind for problem in report.problems].count("forward") == 1


def test_forwardings_that_lead_in_circles_end(repository: Repository) -> None:
    from ckpt_core.format.documents import Forward, ForwardRow
    from ckpt_core.format.sealed import seal

    only = commit(repository, {"w": rows(1)}, 1)
    name, offset = only.packs[0][0], chunk_at(only, 0)
    digest = only.manifest.tensors[0].shards[0].chunks[0].digest
    other = name.replace("-0-0.", "-0-0-r1.")
    repository.store.delete(layout.pack_key(name))
    for here, there in ((name, other), (other, name)):
        row = ForwardRow(offset, digest, there, offset)
        repository.store.put(layout.forward_key(here), seal(Forward(pack=here, rows=(row,))))
    assert verify(repository).damaged == ids(only)
    execute_prune(repository, plan_prune(repository))  # and prune neither hangs nor deletes
    assert list(repository.manifest_keys())


def test_manifests_are_read_once_where_all_is_well(pair: object) -> None:
    store = CountingStore(MemoryStore())
    repository = new_repository(store)
    made = [commit(repository, {"w": rows(i)}, i) for i in range(5)]
    store.reset()
    verify(repository)
    for committed in made:
        assert [key for key, _, _ in store.reads].count(committed.key) == 1


def test_the_manager_tells_and_records_what_it_finds(store: ScriptedStore) -> None:
    with CheckpointManager(store, experiment="x") as manager:
        told = []
        manager.hooks.register_hook(told.append, HookEvent.CORRUPTION_FOUND)
        first = manager.save({"w": rows(1)}, step=1, wait=True).result()
        second = manager.save({"w": rows(2)}, step=2, wait=True).result()
        assert manager.verify().ok
        assert told == []
        key = f"packs/x/{second.id}-0-0.safetensors"
        flip(manager.workspace.repository, key, -1)
        assert manager.verify("step=1").ok
        report = manager.verify("latest", read_data=True)
        assert report.damaged == (second.id,)
        assert told[0].data["damaged"] == (second.id,)
        catalog = manager.workspace.index.catalog()
        assert [check.outcome for check in catalog.checks(first.id)] == ["ok"]
        assert [check.outcome for check in catalog.checks(second.id)] == ["damaged"]
        manager.verify()
        assert [check.outcome for check in catalog.checks() if check.checkpoint is None] == ["damaged", "ok"]


def test_a_damaged_manifest_that_is_deleted_meanwhile_is_no_damage(
    repository: Repository, store: ScriptedStore, pair: tuple[Committed, Committed]
) -> None:
    _, second = pair
    store.put(second.key, b"{}")
    store.once(lambda what, at, when: (what, at) == ("list", "packs"), lambda: store.delete(second.key))
    assert verify(repository).ok
    assert store.done
