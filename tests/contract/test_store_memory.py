"""The store in memory keeps the contract."""

from __future__ import annotations

import pytest

from ckpt_core.stores import MemoryStore, Store, open_store
from contract.store import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()

    def raw(self, store: Store, key: str) -> bytes | None:
        assert isinstance(store, MemoryStore)
        found = store._objects.get(key)
        return found[0] if found else None


def test_a_name_is_one_store_in_a_process() -> None:
    open_store("memory://one").put("k", b"data")
    assert open_store("memory://one").get("k") == b"data"
    assert not open_store("memory://two").exists("k")
    assert open_store("memory://") is not open_store("memory://")


def test_an_open_object_stays_readable_when_it_is_deleted() -> None:
    store = MemoryStore()
    store.put("k", b"data")
    with store.open("k") as reader:
        store.delete("k")
        assert reader.read(0, 4).tobytes() == b"data"
