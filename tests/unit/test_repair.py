"""Repair: what is damaged comes back as it was, or is put where it hurts nobody; and nothing gets worse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, CorruptionError, NotFoundError, clock
from ckpt_core.maintenance.deletion import execute_prune
from ckpt_core.maintenance.documents import heal_store_document
from ckpt_core.maintenance.parity import protect_all
from ckpt_core.maintenance.prune import plan_prune
from ckpt_core.maintenance.repair import RepairReport, discard_quarantine, repair
from ckpt_core.maintenance.verify import verify
from ckpt_core.model import MetricPoint
from ckpt_core.repository import Committed, MetricSegments, References, Repository, layout
from ckpt_core.stores import MemoryStore, Store
from contract.store_case import ATTEMPT, CHUNK, commit, load, new_repository, same
from crash.wrappers import ScriptedStore

pytest.importorskip("zfec")
BIG = 40 * CHUNK


def noise(seed: int, size: int = BIG) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 255, size, np.uint8)


@pytest.fixture
def store() -> ScriptedStore:
    return ScriptedStore(MemoryStore())


@pytest.fixture
def repository(store: ScriptedStore) -> Repository:
    """With chunks over the length up to which single bits are tried, so that only what is tested heals."""
    return new_repository(store, 80 << 10)


def copy_of(store: Store) -> MemoryStore:
    other = MemoryStore()
    other.put("store.json", store.get("store.json"))
    for folder in ("checkpoints", "packs", "refs", "metrics", "trash", "quarantine"):
        for info in store.list(folder):
            other.put(info.key, store.get(info.key))
    return other


def contents(store: Store) -> dict[str, bytes]:
    folders = ("checkpoints", "packs", "refs", "metrics", "trash", "quarantine")
    return {info.key: store.get(info.key) for folder in folders for info in store.list(folder)}


def flip(store: Store, key: str, at: int, length: int = 1) -> None:
    data = bytearray(store.get(key))
    begin = at % len(data)
    data[begin : begin + length] = bytes(byte ^ 0x55 for byte in data[begin : begin + length])
    store.put(key, bytes(data))


def pack_of(committed: Committed) -> str:
    return layout.pack_key(committed.packs[-1][0])


def only(report: RepairReport) -> tuple[str, tuple[str, ...]]:
    (mended,) = report.mended
    return mended.key, mended.sources


# -- what heals -----------------------------------------------------------------------------------


def test_what_a_killed_prune_took_out_is_not_lost(repository: Repository) -> None:
    """It was only taken out of circulation: it is put back, and healed there if it is damaged."""
    first, second = commit(repository, {"w": noise(1)}, 1), commit(repository, {"w": noise(2)}, 2)
    mirror = Repository.open(copy_of(repository.store))
    before = contents(repository.store)
    flip(repository.store, pack_of(second), -100)
    for committed in (first, second):
        repository.store.move(pack_of(committed), layout.withdrawn_key(committed.packs[-1][0]))
    half_done = contents(repository.store)
    assert only(repair(repository, mirror, dry_run=True)) == (pack_of(second), ("mirror",))
    assert contents(repository.store) == half_done
    assert only(repair(repository, mirror)) == (pack_of(second), ("mirror",))
    assert contents(repository.store) == before


def test_a_sound_store_is_left_alone(repository: Repository) -> None:
    commit(repository, {"w": noise(1)}, 1)
    before = contents(repository.store)
    report = repair(repository)
    assert (report.ok, report.mended, report.found.ok) == (True, (), True)
    assert contents(repository.store) == before


def test_a_chunk_that_another_pack_has(repository: Repository) -> None:
    first = commit(repository, {"w": noise(1)}, 1)
    commit(repository, {"w": noise(1)}, 2)  # another training, which knew nothing of the first
    before = contents(repository.store)
    flip(repository.store, pack_of(first), -100)
    assert only(repair(repository)) == (pack_of(first), ("store",))
    assert contents(repository.store) == before


@pytest.mark.parametrize(("at", "length"), [(-100, 1), (4096, 10), (300, 5), (0, 1), (30, BIG), (0, 10**9)])
def test_from_the_mirror(repository: Repository, at: int, length: int) -> None:
    key = pack_of(commit(repository, {"w": noise(1), "v": noise(2, 10)}, 1))
    mirror = Repository.open(copy_of(repository.store))
    before = contents(repository.store)
    flip(repository.store, key, at, length)
    assert only(repair(repository, mirror)) == (key, ("mirror",))
    assert contents(repository.store) == before


@pytest.mark.parametrize("size", [0, 100, 5000, -1])
def test_a_pack_cut_short_or_lost_comes_back_from_the_mirror(repository: Repository, size: int) -> None:
    key = pack_of(commit(repository, {"w": noise(1)}, 1))
    mirror = Repository.open(copy_of(repository.store))
    before = contents(repository.store)
    if size:
        repository.store.put(key, repository.store.get(key)[:size])
    else:
        repository.store.delete(key)
    assert repair(repository, mirror).ok
    assert contents(repository.store) == before


@pytest.mark.parametrize("percent", [5, 10, 50])
def test_a_burst_of_the_share_of_parity_heals(repository: Repository, percent: int) -> None:
    key = pack_of(commit(repository, {"w": noise(1)}, 1))
    protect_all(repository, percent)
    before = contents(repository.store)
    size = len(before[key])
    burst = size * percent // 100
    for begin in (0, 4096, size // 3, size - burst):
        flip(repository.store, key, begin, burst)
        assert only(repair(repository)) == (key, ("parity",)), begin
        assert contents(repository.store) == before


def test_a_lost_pack_heals_from_a_whole_parity(repository: Repository) -> None:
    key = pack_of(commit(repository, {"w": noise(1)}, 1))
    protect_all(repository, 100)
    before = contents(repository.store)
    repository.store.delete(key)
    assert only(repair(repository)) == (key, ("parity",))
    assert contents(repository.store) == before


def test_sources_are_joined(repository: Repository) -> None:
    """Too much for parity alone, and another pack holds only a part of it."""
    state = {name: noise(n, 80 << 10) for n, name in enumerate("abcdefgh")}
    first = commit(repository, state, 1)
    commit(repository, {name: state[name] for name in "abcd"}, 2)
    protect_all(repository, 10)
    before = contents(repository.store)
    begin = first.manifest.packs[0].header_size
    flip(repository.store, pack_of(first), begin, 4 * (80 << 10) + 100)
    key, sources = only(repair(repository))
    assert (key, set(sources)) == (pack_of(first), {"store", "parity"})
    assert contents(repository.store) == before


@pytest.mark.parametrize("at", [0, 5, 100, 1000, 4095])
def test_a_bit_of_a_header_by_its_digest_alone(repository: Repository, at: int) -> None:
    key = pack_of(commit(repository, {"w": noise(1)}, 1))
    before = contents(repository.store)
    data = bytearray(before[key])
    data[at] ^= 8
    repository.store.put(key, bytes(data))
    assert only(repair(repository)) == (key, ("bit",))
    assert contents(repository.store) == before


def fill(repository: Repository) -> None:
    """One of every kind of document."""
    first = commit(repository, {"w": noise(1)}, 1)
    second = commit(repository, {"w": noise(2)}, 2)
    References(repository.store).set_tag("digits", "good", first.manifest.id)
    References(repository.store).pin("digits", second.manifest.id)
    point = MetricPoint("loss", 1, 0.5, clock.now(), 1)
    MetricSegments(repository.store).append("digits", ATTEMPT, [point])
    repository.forget(commit(repository, {"w": noise(3)}, 3).key)


def test_every_bit_of_every_document_heals_by_its_digest_alone(repository: Repository) -> None:
    fill(repository)
    store = repository.store
    before = contents(store)
    papers = [key for key in before if key.endswith(".json")]
    assert len({key.partition("/")[0] for key in papers}) == 4
    for number, key in enumerate(papers):
        for bit in range(number, 8 * len(before[key]), 257):
            data = bytearray(before[key])
            data[bit // 8] ^= 1 << bit % 8
            store.put(key, bytes(data))
            assert only(repair(repository)) == (key, ("bit",)), (key, bit)
            assert contents(store) == before


def test_documents_from_the_mirror(repository: Repository) -> None:
    fill(repository)
    mirror = Repository.open(copy_of(repository.store))
    before = contents(repository.store)
    papers = {key for key in before if key.endswith(".json")}
    for key in papers:
        repository.store.put(key, b"not a document at all")
    report = repair(repository, mirror)
    assert {mended.key for mended in report.mended} == papers
    assert {mended.sources for mended in report.mended} == {("mirror",)}
    assert report.ok
    assert contents(repository.store) == before


def test_a_damaged_sidecar_is_computed_anew(repository: Repository) -> None:
    key = pack_of(commit(repository, {"w": noise(1)}, 1))
    protect_all(repository, 25)
    before = contents(repository.store)
    side = key.replace(".safetensors", ".parity")
    for at in (20, 5000, -3):
        flip(repository.store, side, at)
        assert only(repair(repository))[0] == side
        assert contents(repository.store) == before


@pytest.mark.parametrize("lost", [False, True])
def test_the_stores_own_document(lost: bool) -> None:
    store = MemoryStore()
    repository = new_repository(store)
    made = commit(repository, {"w": noise(1)}, 1)
    other, whole = copy_of(store), store.get("store.json")

    def hurt(data: bytes) -> None:
        if lost:
            store.delete("store.json")
        else:
            store.put("store.json", data)

    assert heal_store_document(store, None) is None
    hurt(b"nonsense")
    assert heal_store_document(store, other) == "mirror"
    assert store.get("store.json") == whole
    if not lost:
        hurt(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
        assert heal_store_document(store, None) == "bit"
        assert store.get("store.json") == whole
    hurt(b"nonsense")
    assert heal_store_document(store, None) == "manifest"
    again = Repository.open(store)
    assert again.document.chunk_bytes == CHUNK
    assert same(load(again, made.key), {"w": noise(1)})


def test_nothing_is_made_where_there_is_no_store() -> None:
    store = MemoryStore()
    assert heal_store_document(store, None) is None
    assert not store.exists("store.json")
    store.put("store.json", b"nonsense")
    with pytest.raises(CorruptionError, match="from a backup"):
        heal_store_document(store, None)


# -- what does not --------------------------------------------------------------------------------


@pytest.fixture
def shared(repository: Repository) -> tuple[Committed, Committed, Committed]:
    """Three checkpoints that share `a`; `b` is the first's alone, the second and the third have no part in it."""
    first = commit(repository, {"a": noise(1, 80 << 10), "b": noise(2, 80 << 10)}, 1)
    second = commit(repository, {"a": noise(1, 80 << 10), "c": noise(3)}, 2, first.manifest)
    third = commit(repository, {"a": noise(1, 80 << 10), "c": noise(3), "d": noise(4)}, 3, second.manifest)
    return first, second, third


def lose(repository: Repository, committed: Committed, tensor: int) -> int:
    chunk = committed.manifest.tensors[tensor].shards[0].chunks[0]
    flip(repository.store, layout.pack_key(committed.manifest.packs[chunk.pack].name), chunk.offset + 5, 999)
    return chunk.offset


def test_what_cannot_be_healed_hurts_those_who_need_it_and_nobody_else(
    repository: Repository, shared: tuple[Committed, Committed, Committed]
) -> None:
    first, second, third = shared
    lose(repository, first, 1)
    report = repair(repository)
    assert report.lost == (first.manifest.id,)
    assert report.mended == ()
    assert layout.quarantine_key(first.key) in report.quarantined
    assert layout.quarantine_key(pack_of(first)) in report.quarantined
    assert [found.id for found in repository.manifest_keys()] == [second.manifest.id, third.manifest.id]
    assert verify(repository).ok
    assert same(load(repository, third.key)["a"], noise(1, 80 << 10))
    with pytest.raises(NotFoundError):
        repository.read(first.key)


def test_repair_again_finds_the_same_and_does_no_more(
    repository: Repository, shared: tuple[Committed, Committed, Committed]
) -> None:
    lose(repository, shared[0], 1)
    lost = repair(repository).lost
    before = contents(repository.store)
    for _ in range(2):
        report = repair(repository)
        assert report.lost == lost
        packs = {key for key in contents(repository.store) if key.startswith("packs/") and "-r" not in key}
        assert packs == {key for key in before if key.startswith("packs/") and "-r" not in key}
        assert verify(repository).ok


def test_prune_keeps_what_quarantine_needs_and_a_mirror_brings_it_back(
    repository: Repository, shared: tuple[Committed, Committed, Committed]
) -> None:
    first, second, third = shared
    mirror = Repository.open(copy_of(repository.store))
    lose(repository, first, 1)
    repair(repository)
    for each in (second, third):
        repository.forget(each.key)
    execute_prune(repository, plan_prune(repository))
    report = repair(repository, mirror)
    assert report.returned == (first.manifest.id,)
    assert report.ok
    assert same(load(repository, first.key), {"a": noise(1, 80 << 10), "b": noise(2, 80 << 10)})
    assert list(repository.store.list("quarantine")) == []
    assert verify(repository).ok


def test_a_save_after_the_repair_writes_again_what_was_lost(store: ScriptedStore) -> None:
    new_repository(store, 80 << 10)
    state = {"a": noise(1, 80 << 10), "b": noise(2, 80 << 10)}
    with CheckpointManager(store, experiment="x") as manager:
        first = manager.save(state, step=1, wait=True).result()
        repository = manager.workspace.repository
        pack = repository.read(first.key).manifest.packs[0]
        flip(store, layout.pack_key(pack.name), pack.header_size + 7)
        assert repair(repository).lost == (first.id,)
        second = manager.save(state, step=2, wait=True).result()
        assert manager.latest() is not None
        assert manager.resolve("latest").id == second.id
        assert manager.verify().ok
        assert same(manager.load("latest"), state)


def test_latest_and_best_go_past_what_is_in_quarantine(store: ScriptedStore) -> None:
    new_repository(store, 80 << 10)
    with CheckpointManager(store, experiment="x", metric="loss") as manager:
        for step in (1, 2, 3):
            manager.save({"w": noise(step)}, step=step, metrics={"loss": 1 / step}, wait=True)
        last = manager.resolve("latest")
        name = manager.workspace.repository.read(last.key).manifest.packs[0].name
        store.delete(layout.pack_key(name))
        assert manager.load("latest")["w"][0] == noise(2)[0]  # with a cry
        repair(manager.workspace.repository)
        assert manager.resolve("latest").step == 2
        assert manager.resolve("best").step == 2
        assert same(manager.load("best"), {"w": noise(2)})


def test_chunks_of_a_lost_pack_are_led_to_where_they_are_too(repository: Repository) -> None:
    first = commit(repository, {"w": noise(1)}, 1)
    second = commit(repository, {"w": noise(1), "v": noise(2)}, 2)
    repository.store.delete(pack_of(first))
    report = repair(repository)
    assert report.lost == ()
    assert same(load(repository, first.key, verify="lazy"), {"w": noise(1)})
    assert verify(repository).ok
    repository.forget(second.key)  # the forwarding keeps alive what it leads to
    execute_prune(repository, plan_prune(repository))
    assert verify(repository).ok
    assert same(load(repository, first.key), {"w": noise(1)})


def test_a_manifest_that_cannot_be_healed(repository: Repository) -> None:
    first, second = commit(repository, {"w": noise(1)}, 1), commit(repository, {"w": noise(2)}, 2)
    flip(repository.store, first.key, 50, 40)
    report = repair(repository)
    assert (report.lost, report.quarantined) == (
        (first.manifest.id,),
        (layout.quarantine_key(first.key),),
    )
    assert verify(repository).ok
    execute_prune(repository, plan_prune(repository))  # which a damaged manifest in its place forbids
    assert same(load(repository, second.key), {"w": noise(2)})


def test_a_manifest_in_quarantine_comes_back_from_the_mirror(repository: Repository) -> None:
    first = commit(repository, {"w": noise(1)}, 1)
    mirror = Repository.open(copy_of(repository.store))
    flip(repository.store, first.key, 50, 40)
    repair(repository)
    report = repair(repository, mirror)
    assert report.returned == (first.manifest.id,)
    assert verify(repository).ok
    assert same(load(repository, first.key), {"w": noise(1)})


def test_a_damaged_pin_holds_and_a_damaged_tag_goes(repository: Repository) -> None:
    first = commit(repository, {"w": noise(1)}, 1)
    references = References(repository.store)
    references.set_tag("digits", "good", first.manifest.id)
    references.pin("digits", first.manifest.id)
    for key in list(references.keys()):
        repository.store.put(key, b"x" * 300)
    report = repair(repository)
    assert references.of_experiment("digits") == ({}, {first.manifest.id})
    assert [mended.sources for mended in report.mended] == [("manifest",)]
    assert report.quarantined == ("quarantine/refs/digits/tags/good.json",)


def test_a_dry_run_changes_nothing_and_says_the_same(
    repository: Repository, shared: tuple[Committed, Committed, Committed]
) -> None:
    first, second, _ = shared
    protect_all(repository, 10)
    repository.store.delete(layout.parity_key(first.packs[-1][0]))
    lose(repository, first, 1)
    flip(repository.store, pack_of(second), -50)
    before = contents(repository.store)
    planned = repair(repository, dry_run=True)
    assert contents(repository.store) == before
    done = repair(repository)
    assert planned.lost == done.lost == (first.manifest.id,)
    assert planned.mended == done.mended
    assert set(planned.quarantined) == set(done.quarantined)


def test_discarding_what_is_in_quarantine(
    repository: Repository, shared: tuple[Committed, Committed, Committed]
) -> None:
    lose(repository, shared[0], 1)
    repair(repository)
    assert discard_quarantine(repository) == 2
    assert list(repository.store.list("quarantine")) == []
    execute_prune(repository, plan_prune(repository))
    report = repair(repository)
    assert (report.ok, report.lost) == (True, ())
    assert verify(repository).ok


@pytest.mark.parametrize("source", ["parity", "mirror", "nothing"])
def test_compressed_chunks(store: ScriptedStore, source: str) -> None:
    """Stored bytes heal like any others; what is intact moves as it is, and what loads is what was saved."""
    repository = new_repository(store, 80 << 10)
    chance = np.random.default_rng(1)
    states: list[dict[str, Any]] = [{name: chance.normal(0, 1, 40_000).astype("f4") for name in "ab"}]
    states.append(states[0] | {"b": chance.normal(0, 1, 40_000).astype("f4")})
    with CheckpointManager(
        store, experiment="x", compression="zstd", parity=10 * (source == "parity")
    ) as manager:
        made = [manager.save(state, step=step, wait=True).result() for step, state in enumerate(states)]
    manifest = repository.read(made[0].key).manifest
    assert manifest.format == 2
    mirror = Repository.open(copy_of(store)) if source == "mirror" else None
    before = contents(store)
    pack = layout.pack_key(manifest.packs[0].name)
    chunk = manifest.tensors[1].shards[0].chunks[0]
    flip(store, pack, chunk.offset + 40, 300)
    report = repair(repository, mirror)
    if source == "nothing":
        assert report.lost == (made[0].id,)
        assert verify(repository).ok
    else:
        assert only(report) == (pack, (source,))
        assert contents(store) == before
        assert same(load(repository, made[0].key), states[0])
    assert same(load(repository, made[1].key, verify="lazy"), states[1])


# -- in the midst of it ---------------------------------------------------------------------------


class Killed(BaseException):
    """The end of the process."""


def test_killed_at_every_step_and_made_again(repository: Repository, store: ScriptedStore) -> None:
    """After each death no checkpoint that loaded before fails, and the next repair comes to the same end."""
    made = [commit(repository, {"a": noise(i, 80 << 10), "b": noise(10 + i, 80 << 10)}, i) for i in range(4)]
    child = commit(repository, {"a": noise(0, 80 << 10), "c": noise(7)}, 5, made[0].manifest)
    protect_all(repository, 10)
    repository.store.delete(layout.parity_key(made[0].packs[0][0]))
    lose(repository, made[0], 1)  # stays lost
    flip(store, pack_of(made[1]), -300, 200)  # parity
    paper = bytearray(store.get(made[2].key))
    paper[60] ^= 2  # by its digest alone
    store.put(made[2].key, bytes(paper))
    damaged = contents(store)
    sound = {made[3].key, child.key, made[1].key, made[2].key}

    def run(at: int) -> int:
        count = 0

        def script(operation: str, key: str, when: str) -> None:
            nonlocal count
            if operation.split()[0] in ("put", "commit", "move", "delete"):
                count += 1
                if count == at:
                    raise Killed

        store.script = script
        try:
            repair(repository)
        except Killed:
            pass
        finally:
            store.script = None
        return count

    total = run(0)
    healed = contents(store)
    assert total > 15
    for at in range(1, total + 1):
        for key in contents(store):
            store.delete(key)
        for key, value in damaged.items():
            store.put(key, value)
        run(at)
        assert same(load(repository, made[3].key), {"a": noise(3, 80 << 10), "b": noise(13, 80 << 10)})
        assert same(load(repository, child.key, verify="lazy")["a"], noise(0, 80 << 10)), at
        report = repair(repository)
        assert report.lost == (made[0].manifest.id,), at
        assert verify(repository).ok, at
        for key in sound:
            load(repository, key)
        now = {
            key: value for key, value in contents(store).items() if "-r" not in key and "forward" not in key
        }
        assert now == {k: v for k, v in healed.items() if "-r" not in k and "forward" not in k}, at
