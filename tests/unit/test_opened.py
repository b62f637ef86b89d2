"""Reading a checkpoint piece by piece: what comes back, and how little is read for it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ckpt_core import CheckpointManager, CorruptionError, NotFoundError, UsageError
from ckpt_core.stores import MemoryStore
from contract.store_case import new_repository
from crash.wrappers import CountingStore

CHUNK = 4096
TABLE = np.arange(8 * 1024, dtype=np.float32).reshape(64, 128)  # 512 bytes a row, 8 rows a chunk, 8 chunks


@pytest.fixture
def store() -> CountingStore:
    store = CountingStore(MemoryStore())
    new_repository(store, CHUNK)
    return store


@pytest.fixture
def manager(store: CountingStore) -> Iterator[CheckpointManager]:
    with CheckpointManager(store, experiment="x") as manager:
        state = {
            "model": {"table": TABLE, "a/b": np.arange(5)},
            "empty": np.empty((0, 4), np.int8),
            "scalar": np.array(1.5),
            "note": "hello",
            "rates": (0.1, None),
        }
        manager.save(state, step=1, wait=True)
        yield manager


def test_opening_reads_one_manifest_and_no_pack(manager: CheckpointManager, store: CountingStore) -> None:
    manager.resolve("latest")
    store.reset()
    with manager.open() as reader:
        assert len(store.objects_read()) == 1
        assert next(iter(store.objects_read())).startswith("checkpoints/")
        assert reader["model/table"].shape == (64, 128)
        assert reader["model/table"].dtype == "F32"
        assert reader["model/table"].nbytes == TABLE.nbytes
        assert len(reader["model/table"]) == 64
        assert reader["note"] == "hello"
        assert reader["rates/1"] is None
        assert len(store.objects_read()) == 1


@pytest.mark.parametrize(
    ("key", "chunks"),
    [
        (slice(0, 8), 1),
        (slice(3, 5), 1),
        (slice(7, 9), 2),
        (slice(60, None), 1),
        (slice(8, 8), 0),
        (slice(9, 3), 0),
        (5, 1),
        (-1, 1),
        (np.int64(16), 1),
        ((slice(0, 4), slice(0, 2)), 1),
        ((5, 3), 1),
        (slice(0, 8, 3), 1),
        (slice(None), 8),
        (Ellipsis, 8),
        ((), 8),
        (slice(None, None, -1), 8),
        ([1, 40], 8),
        ((slice(None), 0), 8),
        (None, 8),
    ],
)
def test_a_range_reads_only_the_chunks_it_touches(
    manager: CheckpointManager, store: CountingStore, key: object, chunks: int
) -> None:
    with manager.open() as reader:
        tensor = reader["model/table"]
        store.reset()
        part = tensor[key]
        np.testing.assert_array_equal(part, TABLE[key])
        assert np.asarray(part).dtype == np.float32
        read = [length for name, _, length in store.reads if name.startswith("packs/")]
        assert sum(read) == chunks * CHUNK


def test_unverified_ranges_read_only_their_bytes(manager: CheckpointManager, store: CountingStore) -> None:
    with manager.open(verify="off") as reader:
        store.reset()
        np.testing.assert_array_equal(reader["model/table"][10:11], TABLE[10:11])
        assert sum(length for _, _, length in store.reads) == 512


def test_a_damaged_chunk_is_not_handed_out_and_its_neighbours_are(
    manager: CheckpointManager, store: CountingStore
) -> None:
    key = next(info.key for info in store.list("packs"))
    data = bytearray(store.get(key))
    at = data.index(TABLE[20].tobytes())
    data[at] ^= 1
    store.inner.put(key, bytes(data))
    with manager.open() as reader:
        np.testing.assert_array_equal(reader["model/table"][:8], TABLE[:8])
        with pytest.raises(CorruptionError) as caught:
            reader["model/table"][17:18]
        assert caught.value.key == key
        with pytest.raises(CorruptionError):
            reader["model/table"].read()


def test_it_is_a_mapping_of_all_leaves(manager: CheckpointManager) -> None:
    with manager.open() as reader:
        assert list(reader) == [
            "model/table", "model/a~1b", "empty", "scalar", "note", "rates/0", "rates/1",
        ]  # fmt: skip
        assert len(reader) == 7
        assert "model/a~1b" in reader
        assert "model" not in reader
        assert list(reader.tensors()) == ["model/table", "model/a~1b", "empty", "scalar"]
        assert reader["empty"].read().shape == (0, 4)
        assert reader["empty"][0:0].shape == (0, 4)
        assert reader["scalar"].read() == 1.5
        assert reader["scalar"][()] == 1.5
        assert np.asarray(reader["model/a~1b"]).tolist() == [0, 1, 2, 3, 4]
        assert "step=1 4 tensors" in repr(reader)
        assert repr(reader["scalar"]) == "<LazyTensor 'scalar' F64 []>"


def test_rows_out_of_range_and_scalars_without_length(manager: CheckpointManager) -> None:
    with manager.open() as reader:
        with pytest.raises(IndexError, match="row 64 of 'model/table', which has 64"):
            reader["model/table"][64]
        with pytest.raises(IndexError):
            reader["model/table"][-65]
        with pytest.raises(TypeError, match="no axes"):
            len(reader["scalar"])
        with pytest.raises(IndexError):
            reader["scalar"][0]


def test_paths_that_are_not_there(manager: CheckpointManager) -> None:
    with manager.open() as reader:
        with pytest.raises(NotFoundError, match="a branch: try 'model/a~1b'") as caught:
            reader["model"]
        assert caught.value.path == "model"
        with pytest.raises(NotFoundError, match="it holds empty"):
            reader["nope"]
        with pytest.raises(UsageError, match="not a tensor"):
            reader.tensor("note")


def test_several_threads_may_read_at_once(manager: CheckpointManager) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with manager.open() as reader, ThreadPoolExecutor(8) as pool:
        tensor = reader["model/table"]
        for row, part in enumerate(pool.map(lambda i: tensor[i], range(64))):
            np.testing.assert_array_equal(part, TABLE[row])
