"""What a local store acknowledged is there after a power cut: a real ext4, stopped without a flush."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ckpt_core.stores import LocalStore
from contract.mounts import PowerDisk
from contract.store_case import commit, load, new_repository, same


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PowerDisk]:
    disk = PowerDisk(tmp_path_factory.mktemp("power"))
    yield disk
    disk.close()


@pytest.fixture
def root(disk: PowerDisk, request: pytest.FixtureRequest) -> Path:
    return disk.root / request.node.name / "below"


def test_the_disk_forgets_what_nobody_synced(disk: PowerDisk, root: Path) -> None:
    root.mkdir(parents=True)
    (root / "file").write_bytes(b"data")
    disk.cut_power()
    assert not (root / "file").exists() or not (root / "file").read_bytes()


@pytest.mark.parametrize("method", ["put", "put_new"])
def test_what_was_written_is_there(disk: PowerDisk, root: Path, method: str) -> None:
    data = bytes(range(256)) * 1000
    getattr(LocalStore(root), method)("a/b/k", data)
    disk.cut_power()
    assert LocalStore(root).get("a/b/k") == data


def test_what_was_written_into_another_process_s_folder_is_there(disk: PowerDisk, root: Path) -> None:
    (root / "a/b").mkdir(parents=True)  # made, but not yet synced, by somebody else
    LocalStore(root).put_new("a/b/k", b"data")
    disk.cut_power()
    assert LocalStore(root).get("a/b/k") == b"data"


def test_what_was_replaced_is_the_new(disk: PowerDisk, root: Path) -> None:
    store = LocalStore(root)
    store.put("k", b"old")
    disk.cut_power()
    LocalStore(root).put("k", b"new")
    disk.cut_power()
    assert LocalStore(root).get("k") == b"new"


def test_what_was_moved_is_in_its_new_place_only(disk: PowerDisk, root: Path) -> None:
    LocalStore(root).put("a/k", b"data")
    disk.cut_power()
    LocalStore(root).move("a/k", "b/c/k")
    disk.cut_power()
    assert LocalStore(root).get("b/c/k") == b"data"
    assert not LocalStore(root).exists("a/k")


def test_what_was_deleted_stays_deleted(disk: PowerDisk, root: Path) -> None:
    LocalStore(root).put("a/k", b"data")
    disk.cut_power()
    LocalStore(root).delete("a/k")
    disk.cut_power()
    assert not LocalStore(root).exists("a/k")


def test_what_was_begun_leaves_no_object(disk: PowerDisk, root: Path) -> None:
    store = LocalStore(root)
    store.put("a/other", b"data")
    writer = store.create("a/k")
    writer.write(0, bytes(1 << 20))
    disk.root.joinpath("touch").write_bytes(b"")
    writer._close()  # the process died with the machine: its descriptors are gone, the rest is as it was
    disk.cut_power()
    assert [info.key for info in LocalStore(root).list("a")] == ["a/other"]


def test_a_committed_checkpoint_is_there_and_whole(disk: PowerDisk, root: Path) -> None:
    state = {"weight": np.arange(50_000, dtype=np.float32), "step": 3}
    repository = new_repository(LocalStore(root))
    first = commit(repository, state, 1)
    state["weight"][5] = -1
    second = commit(repository, state, 2, base=first.manifest)
    disk.cut_power()
    again = type(repository).open(LocalStore(root))
    assert [key.step for key in again.manifest_keys()] == [1, 2]
    assert same(load(again, second.key), state)
    assert load(again, first.key)["weight"][5] == 5
    again.forget(first.key)
    disk.cut_power()
    assert [key.step for key in again.manifest_keys()] == [2]
    assert [key.step for key in again.manifest_keys(trash=True)] == [1]
