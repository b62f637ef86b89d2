"""A disk without room, one that can only be read: real file systems, mounted for the test."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, KeepLast, StoreError

MEGABYTE = 1 << 20


def state(step: int, megabytes: float = 3) -> dict[str, Any]:
    return {
        "w": np.random.default_rng(step).integers(0, 255, int(megabytes * MEGABYTE), np.uint8),
        "step": step,
    }


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a file system here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=False)
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Takes all the room that is left."""
    path = folder / "ballast"
    with open(path, "wb") as file:
        for size in (MEGABYTE, 4096, 1):
            try:
                while True:
                    os.write(file.fileno(), b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return path


@pytest.mark.parametrize("wait", [False, True])
def test_a_full_disk_fails_the_save_and_nothing_else(disk: Path, wait: bool, caplog: Any) -> None:
    with CheckpointManager(disk / "store", experiment="x") as manager:
        saved = [manager.save(state(step), step=step, tags=[f"t{step}"]).result(60) for step in (1, 2)]
        manager.wait()
        ballast = fill(disk)
        for step in (3, 4):
            if wait:
                with pytest.raises(StoreError, match="full") as caught:
                    manager.save(state(step), step=step, wait=True)
                error: Any = caught.value
            else:
                error = manager.save(state(step), step=step).exception(60)
            assert isinstance(error, StoreError)
            assert error.kind == "full"
            assert str(disk / "store") in str(error)
        manager.wait()
        # All that was there is there, and can be used while there is no room.
        assert manager.checkpoints() == saved
        assert manager.load()["step"] == 2
        assert manager.verify().ok
        assert [step for step, _ in manager.failures] == [3, 4]
        assert not [path for path in (disk / "store").rglob(".tmp-*") if path.stat().st_size > MEGABYTE]
        ballast.unlink()
        assert manager.save(state(5), step=5).result(60).step == 5
        manager.wait()
        assert manager.load()["step"] == 5
        assert manager.verify().ok
    with CheckpointManager(disk / "store", experiment="x") as manager:
        assert [c.step for c in manager.checkpoints()] == [1, 2, 5]


def test_a_state_that_does_not_fit_at_all(disk: Path) -> None:
    with CheckpointManager(disk / "store", experiment="x") as manager:
        error = manager.save(state(1, 20), step=1).exception(60)
        assert isinstance(error, StoreError)
        assert error.kind == "full"
        assert manager.checkpoints() == []
        assert manager.save(state(2, 10), step=2).result(60).step == 2
        manager.wait()
        assert manager.load()["step"] == 2


def test_retention_makes_room_after_the_new_one_is_safe(disk: Path) -> None:
    """Room for three at a time: with two kept, saving goes on for ever."""
    with CheckpointManager(disk / "store", experiment="x", retention=[KeepLast(2)]) as manager:
        for step in range(12):
            assert manager.save(state(step, 4), step=step).result(60).step == step
        manager.wait()
        assert [c.step for c in manager.checkpoints()] == [10, 11]
        assert manager.failures == []


def test_forgetting_and_pruning_need_no_room(disk: Path) -> None:
    with CheckpointManager(disk / "store", experiment="x") as manager:
        for step in (1, 2):
            manager.save(state(step), step=step, wait=True)
        fill(disk)
        manager.forget("step=1")
        assert manager.prune().freed > 3 * MEGABYTE
        assert [c.step for c in manager.checkpoints()] == [2]
        assert manager.save(state(3, 2), step=3).result(60).step == 3


def test_a_store_that_cannot_be_made_on_a_full_disk(disk: Path) -> None:
    fill(disk)
    with pytest.raises(StoreError) as caught:
        CheckpointManager(disk / "store", experiment="x")
    assert caught.value.kind == "full"


def test_a_file_system_that_can_only_be_read(disk: Path) -> None:
    with CheckpointManager(disk / "store", experiment="x", metric="loss") as manager:
        manager.save(state(1, 1), step=1, metrics={"loss": 0.5}, tags=["t"], wait=True)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with CheckpointManager(disk / "store", experiment="x", metric="loss") as manager:
        assert manager.load("t")["step"] == 1
        assert manager.best().step == 1
        assert manager.verify().ok
        assert manager.plan_prune().empty
        error = manager.save(state(2, 1), step=2).exception(60)
        assert isinstance(error, StoreError)
        assert error.kind == "read-only"
        assert str(disk / "store") in str(error)
        for change in (lambda: manager.pin("t"), lambda: manager.tag("t", "u"), lambda: manager.forget("t")):
            with pytest.raises(StoreError) as caught:
                change()
            assert caught.value.kind == "read-only"
        assert [c.step for c in manager.checkpoints()] == [1]
    with pytest.raises(StoreError) as caught:
        CheckpointManager(disk / "other", experiment="x")
    assert caught.value.kind == "read-only"
