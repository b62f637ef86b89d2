"""Full disks, read-only folders and odd paths, met for real: clear errors, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ckpt_core.errors import MissingExtraError, NotFoundError, StoreError, UsageError
from ckpt_core.repository import Repository
from ckpt_core.stores import LocalStore, MemoryStore, open_store
from contract.mounts import read_only, small_disk
from contract.store_case import commit, keys_of, load, new_repository, same


def temporaries(root: Path) -> list[Path]:
    return list(root.rglob(".tmp-*"))


def test_a_full_disk_is_said_to_be_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        store = LocalStore(disk / "store")
        store.put("a/k", b"data")
        free = store.free_bytes()
        assert free is not None
        for write in (store.put, store.put_new):
            with pytest.raises(StoreError, match="ckpt prune") as caught:
                write("a/large", bytes(17 << 20))
            assert (caught.value.kind, caught.value.key) == ("full", "a/large")
        assert temporaries(disk) == []
        assert [info.key for info in store.list("a")] == ["a/k"]
        assert store.free_bytes() == free


def test_a_save_that_does_not_fit_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    state = {"weight": rng.standard_normal(1 << 20), "step": 1}
    with small_disk(tmp_path / "disk") as disk:
        repository = new_repository(LocalStore(disk / "store"), 1 << 16)
        first = commit(repository, state, 1)
        free, keys = repository.store.free_bytes(), keys_of(repository.store)
        with pytest.raises(StoreError) as caught:
            commit(repository, {"weight": rng.standard_normal(1 << 20)}, 2, base=first.manifest)
        assert caught.value.kind == "full"
        assert temporaries(disk) == []
        assert keys_of(repository.store) == keys
        assert repository.store.free_bytes() == free
        assert same(load(repository, first.key), state)
        small = commit(repository, {"weight": state["weight"], "step": 2}, 2, base=first.manifest)
        assert load(repository, small.key)["step"] == 2


def test_a_disk_without_room_for_the_manifest_keeps_no_pack(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        repository = new_repository(LocalStore(disk / "store"))
        first = commit(repository, {"a": np.zeros(10)}, 1)
        free = repository.store.free_bytes()
        assert free is not None
        state = {"weight": np.random.default_rng(0).integers(0, 256, free - 40_000, np.uint8)}
        with pytest.raises(StoreError) as caught:  # the pack fits, the list of its digests does not
            commit(repository, state, 2)
        assert caught.value.kind == "full"
        assert keys_of(repository.store) == [first.key, f"packs/{first.manifest.packs[0].name}"]
        assert repository.store.free_bytes() == free


def test_a_read_only_store_can_be_read_and_says_why_it_cannot_be_written(store_path: Path) -> None:
    repository = new_repository(LocalStore(store_path))
    first = commit(repository, {"a": np.arange(10)}, 1)
    with read_only(store_path):
        again = Repository.open(LocalStore(store_path), create=True)
        assert same(load(again, first.key), {"a": np.arange(10)})
        for write in (
            lambda: commit(again, {"a": np.arange(11)}, 2),
            lambda: again.forget(first.key),
            lambda: again.store.put("refs/x", b""),
            lambda: again.store.delete(first.key),
            again.store.now,
        ):
            with pytest.raises(StoreError, match="read-only: remount") as caught:
                write()
            assert caught.value.kind == "read-only"
    assert [key.step for key in repository.manifest_keys()] == [1]


def test_a_store_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    with read_only(tmp_path), pytest.raises(StoreError) as caught:
        Repository.open(LocalStore(tmp_path / "store"), create=True)
    assert caught.value.kind == "read-only"


def test_a_folder_without_permission_says_so(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    new_repository(LocalStore(closed / "store"))
    store = LocalStore(closed)
    closed.chmod(0)
    asks = (
        lambda: LocalStore(closed / "store"), lambda: store.get("store/store.json"), lambda: store.put("k", b""),
        lambda: list(store.list("store")), lambda: store.sweep(0.0),
    )  # fmt: skip
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may do everything: ask as somebody else
    try:
        for ask in asks:
            with pytest.raises(StoreError, match="check the owner") as caught:
                ask()
            assert caught.value.kind == "permission"
        store.free_bytes()
    finally:
        os.seteuid(user)
        closed.chmod(0o755)


def test_no_store_is_told_from_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        Repository.open(LocalStore(tmp_path / "none"))
    assert caught.value.kind == "store"
    assert not (tmp_path / "none").exists()
    assert Repository.open(LocalStore(tmp_path / "some"), create=True).document.chunk_bytes == 8 << 20


def test_a_path_or_a_url_opens_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for root in (tmp_path / "s", str(tmp_path / "s"), f"file://{tmp_path}/s", "~/s"):
        store = open_store(root)
        assert isinstance(store, LocalStore)
        assert store.root == tmp_path / "s"
    memory = open_store("memory://x")
    assert isinstance(memory, MemoryStore)
    assert open_store(memory) is memory


@pytest.mark.parametrize("root", ["", "  ", None, 3, b"path", "a\0b", "~nobody-of-that-name/x"])
def test_what_is_no_path_is_refused(root: object) -> None:
    with pytest.raises(UsageError):
        open_store(root)  # type: ignore[arg-type]


def test_a_scheme_that_nobody_serves_names_those_that_are() -> None:
    with pytest.raises(MissingExtraError, match="file, memory") as caught:
        open_store("ftp://host/path")
    assert caught.value.scheme == "ftp"
