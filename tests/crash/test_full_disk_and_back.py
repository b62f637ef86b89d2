"""The disk goes and comes back under one manager: no room, no inodes, read-only; the mirror's disk, too."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, StoreError
from ckpt_core.stores import LocalStore, Store

MEGABYTE = 1 << 20


def state(step: int, megabytes: float = 3) -> dict[str, Any]:
    noise = np.random.default_rng(step).integers(0, 255, int(megabytes * MEGABYTE), np.uint8)
    return {"w": noise, "step": step}


def contents(store: Store) -> dict[str, bytes]:
    folders = ("checkpoints", "packs", "refs", "metrics")
    return {info.key: store.get(info.key) for folder in folders for info in store.list(folder)}


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"cannot mount a file system here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def nothing_temporary(root: Path) -> bool:
    return not list(root.rglob(".tmp-*"))


@pytest.mark.parametrize("wait", [False, True])
def test_space_given_back_in_the_midst(tmp_path: Path, wait: bool) -> None:
    """The save that meets the full disk is half written; the same manager's next one is whole."""
    with mounted(tmp_path / "disk", "size=16m") as disk:
        with CheckpointManager(disk / "store", experiment="x") as manager:
            for step in (1, 2):
                manager.save(state(step), step=step, wait=True)
            for step in (3, 5):
                # Room for a half of it: it fails in mid-write, and not at its first byte.
                (disk / "ballast").write_bytes(bytes(free(disk) - 3 * MEGABYTE // 2))
                with pytest.raises(StoreError, match="full"):
                    manager.save(state(step), step=step, wait=wait).result(60)
                (disk / "ballast").unlink()
                assert manager.save(state(step + 1, 1), step=step + 1, wait=wait).result(60).step == step + 1
            manager.wait()
            assert [c.step for c in manager.checkpoints()] == [1, 2, 4, 6]
            assert manager.load()["step"] == 6
            assert manager.verify().ok
            assert [step for step, _ in manager.failures] == [3, 5]
        assert nothing_temporary(disk)


def free(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_bsize


def test_no_inode_is_left(tmp_path: Path) -> None:
    """There is room, and yet no file can be made: the same error number as of a full disk."""
    with mounted(tmp_path / "disk", "size=64m,nr_inodes=60") as disk:
        with CheckpointManager(disk / "store", experiment="x") as manager:
            manager.save(state(1), step=1, wait=True)
            taken = disk / "taken"
            taken.mkdir()
            with pytest.raises(OSError, match="space") as caught:
                for number in range(100):
                    (taken / f"{number}").touch()
            assert caught.value.errno == errno.ENOSPC
            error = manager.save(state(2), step=2).exception(60)
            assert isinstance(error, StoreError)
            assert error.kind == "full"
            assert manager.load()["step"] == 1
            for file in taken.iterdir():
                file.unlink()
            assert manager.save(state(3), step=3).result(60).step == 3
            manager.wait()
            assert [c.step for c in manager.checkpoints()] == [1, 3]
            assert manager.verify().ok
        assert nothing_temporary(disk)


def test_read_only_and_back(tmp_path: Path) -> None:
    """As the kernel does when a disk reports errors. Whoever has a file open for writing keeps it from being done
    at will, so the catalog is elsewhere."""
    with mounted(tmp_path / "disk", "size=64m") as disk:
        catalog = f"sqlite:///{tmp_path / 'catalog.db'}"
        with CheckpointManager(disk / "store", experiment="x", catalog=catalog) as manager:
            manager.log({"loss": 1.0}, step=1)
            manager.save(state(1), step=1, wait=True)
            manager.wait()
            remount(disk, "ro")
            for step in (2, 3):
                manager.log({"loss": 1 / step}, step=step)
                error = manager.save(state(step), step=step).exception(60)
                assert isinstance(error, StoreError)
                assert error.kind == "read-only"
            assert manager.load()["step"] == 1
            assert manager.verify().ok
            remount(disk, "rw")
            assert manager.save(state(4), step=4).result(60).step == 4
            manager.wait()
            assert [c.step for c in manager.checkpoints()] == [1, 4]
            series = manager.workspace.index.catalog().metric_series("x", "loss")
            assert [point.step for point in series] == [1, 2, 3], "what was logged meanwhile is not lost"
        assert nothing_temporary(disk)


@pytest.mark.parametrize("ill", ["read-only", "full"])
def test_the_mirrors_disk(tmp_path: Path, ill: str, caplog: pytest.LogCaptureFixture) -> None:
    with mounted(tmp_path / "disk", "size=24m") as disk:
        one, two = tmp_path / "one", disk / "two"
        with CheckpointManager(one, experiment="x", mirror=two) as manager:
            manager.save(state(1, 1), step=1, tags=["a"], wait=True)
            manager.wait()
            ballast = disk / "ballast"
            if ill == "read-only":
                remount(disk, "ro")
            else:
                ballast.write_bytes(bytes(free(disk)))
            for step in (2, 3):
                manager.save(state(step, 1), step=step, tags=["a"], wait=True)
            manager.forget("step=2")
            manager.wait()
            assert manager.failures == []
            assert manager.load()["step"] == 3
            remount(disk, "rw")
            ballast.unlink(missing_ok=True)
            manager.save(state(4, 1), step=4, wait=True)
            manager.wait()
            assert contents(LocalStore(two)) == contents(LocalStore(one))
            assert contents(LocalStore(two)) != {}
        assert nothing_temporary(two)
        with CheckpointManager(two, experiment="x") as manager:
            assert [c.step for c in manager.checkpoints()] == [1, 3, 4]
            assert manager.load("a")["step"] == 3
            assert manager.verify().ok


def test_undelete_travels_to_the_mirror(tmp_path: Path) -> None:
    """At once: the next thing that happens may be the loss of the first disk."""
    one, two = tmp_path / "one", tmp_path / "two"
    with CheckpointManager(one, experiment="x", mirror=two) as manager:
        for step in (1, 2):
            manager.save(state(step, 0.1), step=step, tags=[f"t{step}"], wait=True)
        manager.wait()
        before = contents(LocalStore(two))
        for prune in (False, True):
            manager.forget("step=1")
            if prune:
                manager.prune()
            assert len(contents(LocalStore(two))) < len(before)
            manager.undelete("step=1")
            assert contents(LocalStore(two)) == contents(LocalStore(one)) == before
        manager.save(state(3, 0.1), step=3, wait=True)
    with CheckpointManager(two, experiment="x") as manager:
        manager.prune(manager.plan_prune(now=True))
        assert [c.step for c in manager.checkpoints()] == [1, 2, 3]
        assert manager.load("t1")["step"] == 1
        assert manager.verify().ok


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("catalog", [None, "sqlite:///{}/catalog.db"])
def test_the_store_is_lost_under_a_running_manager(
    tmp_path: Path, mirrored: bool, catalog: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Its folder is gone: to find nothing there says nothing. A training goes on saving, into a store that can be
    opened; and whoever opens the place anew finds there what the mirror has."""
    one, two = tmp_path / "one", tmp_path / "two"
    place = {"catalog": catalog.format(tmp_path)} if catalog else {}
    with CheckpointManager(one, experiment="x", mirror=two if mirrored else None, **place) as manager:
        for step in (1, 2, 3):
            manager.save(state(step, 0.5), step=step, wait=True)
        manager.wait()
        one.rename(tmp_path / "gone")
        with pytest.raises(StoreError) as caught:
            manager.load("latest")
        assert caught.value.kind == "gone"
        assert str(one) in str(caught.value)
        assert not one.exists()
    if mirrored:
        with CheckpointManager(one, experiment="x", mirror=two, **place) as manager:
            for step in (1, 2, 3):
                assert np.array_equal(manager.load(f"step={step}")["w"], state(step, 0.5)["w"])
            assert manager.save(state(4, 0.5), step=4).result(60).step == 4
            manager.wait()
            assert manager.repair().ok
            assert manager.verify().ok
            assert [c.step for c in manager.checkpoints()] == [1, 2, 3, 4]


def test_saves_into_a_folder_that_was_emptied_are_found_again(tmp_path: Path) -> None:
    one = tmp_path / "one"
    with CheckpointManager(one, experiment="x") as manager:
        manager.save(state(1, 0.5), step=1, wait=True)
        identity = manager.workspace.repository.document.store_id
        one.rename(tmp_path / "gone")
        assert manager.save(state(1, 0.5), step=2).result(60).step == 2
        assert manager.load()["step"] == 1
    with CheckpointManager(one, experiment="x") as manager:
        assert manager.workspace.repository.document.store_id == identity
        assert [c.step for c in manager.checkpoints()] == [2]
        assert np.array_equal(manager.load()["w"], state(1, 0.5)["w"])
        assert manager.verify().ok
