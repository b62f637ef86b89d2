"""Reading one checkpoint: ranges, damage of every kind, packs that were rewritten or are gone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from ckpt_core import ids
from ckpt_core.errors import CorruptionError, ObjectNotFoundError
from ckpt_core.format.documents import Forward, ForwardRow
from ckpt_core.format.header import read_header
from ckpt_core.format.pack import PackWriter, Piece, header_bound
from ckpt_core.format.sealed import seal
from ckpt_core.repository import Committed, Repository, Verify, layout
from ckpt_core.repository import reader as reading
from ckpt_core.stores import MemoryStore
from contract.store_case import CHUNK, commit, load, new_repository, same


@pytest.fixture
def repository() -> Repository:
    return new_repository(MemoryStore())


@pytest.fixture
def state() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "w": rng.integers(0, 256, 5 * CHUNK + 100, np.uint8),
        "b": np.arange(4.0),
        "e": np.zeros((0, 2)),
        "n": 5,
    }


@pytest.fixture
def committed(repository: Repository, state: dict[str, Any]) -> Committed:
    return commit(repository, state, 7)


def index_of(committed: Committed, path: str) -> int:
    found: int = committed.manifest.state[path]["$tensor"]
    return found


def damage(repository: Repository, key: str, at: int) -> None:
    data = bytearray(repository.store.get(key))
    data[at] ^= 0x10
    repository.store.put(key, data)


def pack_of(committed: Committed, number: int = 0) -> str:
    return layout.pack_key(committed.packs[number][0])


def rewrite(repository: Repository, name: str, keep: Any = lambda chunk: True) -> str:
    """What a prune does to a pack, in its order: the new pack, the forwarding, the deletion."""
    store = repository.store
    with store.open(layout.pack_key(name)) as reader:
        header = read_header(reader.read, reader.size, name)
        kept = [chunk for chunk in header.chunks if keep(chunk)]
        target = f"{name.partition('/')[0]}/{ids.new_ulid()}-0-0.safetensors"
        with store.create(layout.pack_key(target)) as sink:
            bound = header_bound([(c.path, c.spec) for c in kept], CHUNK)
            writer = PackWriter(lambda: sink, checkpoint=header.checkpoint, chunk_bytes=CHUNK, bound=bound)
            starts = [
                writer.append(Piece(c.path, c.spec, c.begin, reader.read(c.offset, c.length)), c.digest)
                for c in kept
            ]
            facts = writer.finish()
            sink.commit()
    rows = tuple(
        ForwardRow(c.offset, c.digest, target, facts.header_size + s)
        for c, s in zip(kept, starts, strict=True)
    )
    store.put(layout.forward_key(name), seal(Forward(pack=name, rows=rows)))
    store.delete(layout.pack_key(name))
    return target


# -- ranges


@pytest.mark.parametrize("verify", ["full", "lazy", "off"])
def test_any_range_of_a_tensor(
    repository: Repository, committed: Committed, state: dict[str, Any], verify: Verify
) -> None:
    reader = repository.reader(committed.manifest, verify)
    index, size = index_of(committed, "w"), state["w"].size
    ends = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, size - 1, size, size + 5]
    for begin in ends:
        for end in ends:
            assert reader.read_range(index, begin, end).tobytes() == state["w"][begin:end].tobytes()
    assert reader.read_range(index, -5, 3).tobytes() == state["w"][:3].tobytes()
    assert reader.read_range(index_of(committed, "e"), 0, 10).size == 0
    reader.close()


def test_a_range_reads_its_chunks_and_no_others(repository: Repository, committed: Committed) -> None:
    first = committed.manifest.tensors[index_of(committed, "w")].shards[0].chunks
    damage(repository, pack_of(committed), first[3].offset)
    reader = repository.reader(committed.manifest, "lazy")
    index = index_of(committed, "w")
    assert reader.read_range(index, 0, 3 * CHUNK).size == 3 * CHUNK
    assert reader.read_range(index, 4 * CHUNK, 5 * CHUNK).size == CHUNK
    for begin, end in (
        (3 * CHUNK, 3 * CHUNK + 1),
        (3 * CHUNK - 1, 3 * CHUNK + 1),
        (4 * CHUNK - 1, 4 * CHUNK + 1),
    ):
        with pytest.raises(CorruptionError):
            reader.read_range(index, begin, end)
    reader.close()


def test_threads_share_a_reader(repository: Repository, committed: Committed, state: dict[str, Any]) -> None:
    reader = repository.reader(committed.manifest)
    index = index_of(committed, "w")
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda at: reader.read_range(index, at, at + 100), range(0, 5 * CHUNK, 100)))
    assert all((part == state["w"][n * 100 : n * 100 + 100]).all() for n, part in enumerate(parts))
    reader.close()


def test_a_large_read_goes_through_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_THREADS", 4)
    repository = new_repository(MemoryStore(), 1 << 18)
    state = {str(n): np.random.default_rng(n).standard_normal(100_000) for n in range(12)}
    committed = commit(repository, state)
    assert same(load(repository, committed.key), state)
    reader = repository.reader(committed.manifest)
    buffers = [(n, np.empty(800_000, np.uint8)) for n in range(12)]
    reader.read_all(buffers)
    assert all(buffer.tobytes() == state[str(n)].tobytes() for n, buffer in buffers)
    damage(repository, pack_of(committed), committed.packs[0][1] - 5)
    with pytest.raises(CorruptionError):
        repository.reader(committed.manifest).read_all(buffers)
    reader.close()


# -- damage


def test_every_flipped_bit_of_a_pack_is_found(repository: Repository) -> None:
    committed = commit(repository, {"w": np.arange(40.0), "b": np.arange(3)})
    key, size = pack_of(committed), committed.packs[0][1]
    data = repository.store.get(key)
    text = len(data[:4096].rstrip())
    for at in [*range(text), *range(text, 4096, 61), *range(4096, size)]:
        hurt = bytearray(data)
        hurt[at] ^= 1 << at % 8
        repository.store.put(key, hurt)
        with pytest.raises(CorruptionError) as caught:
            load(repository, committed.key)
        assert caught.value.kind == ("header" if at < 4096 else "digest")
        assert (caught.value.key, caught.value.step, caught.value.checkpoint) == (
            key,
            1,
            committed.manifest.id,
        )


def test_every_flipped_bit_of_a_manifest_is_found(repository: Repository, committed: Committed) -> None:
    data = repository.store.get(committed.key)
    for at in range(len(data)):
        hurt = bytearray(data)
        hurt[at] ^= 1 << at % 8
        repository.store.put(committed.key, hurt)
        with pytest.raises(CorruptionError, match=committed.key):
            repository.read(committed.key)


def test_a_manifest_cut_anywhere_is_found(repository: Repository, committed: Committed) -> None:
    data = repository.store.get(committed.key)
    for cut in (0, 1, 50, len(data) // 2, len(data) - 1):
        repository.store.put(committed.key, data[:cut])
        with pytest.raises(CorruptionError, match="cut short|does not match") as caught:
            repository.read(committed.key)
        assert caught.value.key.endswith(committed.key)


@pytest.mark.parametrize("verify", ["full", "lazy", "off"])
def test_a_pack_cut_short_is_never_data(repository: Repository, committed: Committed, verify: Verify) -> None:
    key = pack_of(committed)
    data = repository.store.get(key)
    for cut in (0, 100, 4096, len(data) - 1):
        repository.store.put(key, data[:cut])
        with pytest.raises(CorruptionError) as caught:
            load(repository, committed.key, verify=verify)
        assert caught.value.kind in ("header", "truncated")


def test_off_reads_what_is_there(repository: Repository, committed: Committed) -> None:
    damage(repository, pack_of(committed), committed.packs[0][1] - 1)
    load(repository, committed.key, verify="off")
    with pytest.raises(CorruptionError):
        load(repository, committed.key, verify="lazy")


def test_only_the_packs_that_are_needed_are_looked_at(repository: Repository) -> None:
    first = commit(repository, {"a": np.arange(600.0)}, 1)
    second = commit(repository, {"a": np.arange(600.0), "b": -np.arange(700.0)}, 2, base=first.manifest)
    damage(repository, pack_of(first), 100)
    assert same(load(repository, second.key, include="b"), {"b": -np.arange(700.0)})
    with pytest.raises(CorruptionError):
        load(repository, second.key, include="a")


def test_another_pack_in_the_place_is_found(repository: Repository) -> None:
    one = commit(repository, {"a": np.arange(600.0)}, 1)
    other = commit(repository, {"a": np.arange(600.0)}, 2)
    repository.store.put(pack_of(one), repository.store.get(pack_of(other)))
    with pytest.raises(CorruptionError) as caught:
        load(repository, one.key)
    assert caught.value.kind == "header"
    assert same(load(repository, one.key, verify="lazy"), {"a": np.arange(600.0)})


def test_a_missing_pack_is_named(repository: Repository, committed: Committed) -> None:
    repository.store.delete(pack_of(committed))
    for verify in ("full", "lazy", "off"):
        with pytest.raises(CorruptionError, match="is missing") as caught:
            load(repository, committed.key, verify=verify)
        assert (caught.value.kind, caught.value.key) == ("missing", pack_of(committed))


# -- packs that were rewritten


def test_a_rewritten_pack_is_found_again_and_again(repository: Repository, state: dict[str, Any]) -> None:
    first = commit(repository, state, 1)
    second = commit(repository, {**state, "b": np.arange(5.0)}, 2, base=first.manifest)
    name = first.packs[0][0]
    for _ in range(4):
        name = rewrite(repository, name)
        for verify in ("full", "lazy", "off"):
            assert same(load(repository, first.key, verify=verify), state)
            assert same(load(repository, second.key, verify=verify), {**state, "b": np.arange(5.0)})


def test_damage_in_a_rewritten_pack_is_found(repository: Repository, committed: Committed) -> None:
    target = layout.pack_key(rewrite(repository, rewrite(repository, committed.packs[0][0])))
    good = repository.store.get(target)
    for at in (50, 4000, len(good) - 1):
        damage(repository, target, at)
        with pytest.raises(CorruptionError) as caught:
            load(repository, committed.key)
        assert caught.value.kind in ("header", "digest")
        repository.store.put(target, good)
    repository.store.delete(target)
    with pytest.raises(CorruptionError, match="is missing"):
        load(repository, committed.key)


def test_a_chunk_that_was_not_kept_is_missed(repository: Repository, committed: Committed) -> None:
    rewrite(repository, committed.packs[0][0], keep=lambda chunk: chunk.path != "b")
    with pytest.raises(CorruptionError, match="no longer holds") as caught:
        load(repository, committed.key)
    assert caught.value.kind == "missing"
    assert load(repository, committed.key, include="w")["w"].size


def test_forwards_that_go_round_end(repository: Repository, committed: Committed) -> None:
    name = committed.packs[0][0]
    chunk_list = [c for t in committed.manifest.tensors for c in t.shards[0].chunks]
    rows = tuple(ForwardRow(c.offset, c.digest, name, c.offset) for c in chunk_list)
    repository.store.put(layout.forward_key(name), seal(Forward(pack=name, rows=rows)))
    repository.store.delete(pack_of(committed))
    with pytest.raises(CorruptionError) as caught:
        load(repository, committed.key)
    assert caught.value.kind == "missing"


def test_a_forward_of_another_pack_is_refused(repository: Repository, committed: Committed) -> None:
    name = committed.packs[0][0]
    rewrite(repository, name)
    document = repository.forward(name)
    assert document is not None
    assert document.pack == name
    assert repository.forward("e/none.safetensors") is None
    repository.store.put(
        layout.forward_key(name), seal(Forward(pack="e/other.safetensors", rows=document.rows))
    )
    with pytest.raises(CorruptionError, match="moved or copied"):
        repository.forward(name)
    with pytest.raises(CorruptionError):
        load(repository, committed.key)


# -- open packs


def test_a_reader_opens_each_pack_once_and_closes_it(repository: Repository, committed: Committed) -> None:
    opened: list[str] = []
    closed: list[str] = []
    real = repository.store.open

    def counting(key: str) -> Any:
        @contextmanager
        def watched() -> Any:
            opened.append(key)
            with real(key) as reader:
                yield reader
            closed.append(key)

        return watched()

    repository.store.open = counting  # type: ignore[method-assign]
    reader = repository.reader(committed.manifest)
    for _ in range(3):
        reader.read_range(index_of(committed, "w"), 0, 5 * CHUNK)
        reader.check_headers()
    reader.close()
    assert opened == closed == [pack_of(committed)]


def test_reading_a_missing_document_is_not_found(repository: Repository) -> None:
    with pytest.raises(ObjectNotFoundError):
        reading.read_forward(repository.store, "e/none.safetensors")
