"""Stores that cannot be: a file, a folder of somebody else, a newer format, a name that leads elsewhere."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import (
    CheckpointManager,
    CorruptionError,
    FormatError,
    StateMismatchError,
    StoreError,
    UsageError,
)
from ckpt_core.format.sealed import seal


def test_a_store_path_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(StoreError, match="is a file; a store is a folder") as caught:
        CheckpointManager(path, experiment="x")
    assert caught.value.path == str(path)
    assert path.read_text() == "mine"
    with pytest.raises(StoreError):
        CheckpointManager(path / "below", experiment="x")


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "..", ".hidden", "", " x", "x\n", "a@b", "x" * 256, "-x", 3, None]
)
def test_experiments_that_cannot_be_called_so(store_path: Path, name: Any) -> None:
    with pytest.raises(UsageError, match="experiment's name"):
        CheckpointManager(store_path, experiment=name)
    assert not store_path.exists()


@pytest.mark.parametrize("name", ["digits 8x8", "größe", "数字", "a.b-c_d~e", "CON", "x" * 255])
def test_experiments_that_can(store_path: Path, name: str) -> None:
    with CheckpointManager(store_path, experiment=name) as manager:
        saved = manager.save({"w": np.arange(3)}, step=1, tags=[name], wait=True).result()
    with CheckpointManager(store_path, experiment=name) as manager:
        assert manager.resolve(name).id == saved.id
        assert manager.checkpoints()[0].experiment == name


def test_a_store_of_a_newer_format(store_path: Path) -> None:
    with CheckpointManager(store_path, experiment="x") as manager:
        manager.save({"w": 1}, step=1, wait=True)
    document = store_path / "store.json"
    document.write_bytes(seal({"format": 2, "anything": "else"}))
    with pytest.raises(FormatError, match="format 2.*upgrade") as caught:
        CheckpointManager(store_path, experiment="x")
    assert caught.value.format == 2
    assert str(store_path) in str(caught.value)


def test_a_checkpoint_of_a_newer_format_beside_old_ones(store_path: Path) -> None:
    """It is not damage, and nothing falls back from it; what is not asked for does not matter."""
    with CheckpointManager(store_path, experiment="x") as manager:
        manager.save({"w": 1}, step=1, wait=True)
        newer = manager.save({"w": 2}, step=2, wait=True).result()
        (store_path / newer.key).write_bytes(seal({"format": 3, "id": newer.id}))
        with pytest.raises(FormatError, match="upgrade"):
            manager.load("latest")
        assert manager.load("step=1") == {"w": 1}
        assert [problem.kind for problem in manager.verify().problems] == ["manifest"]


def test_a_damaged_store_document(store_path: Path) -> None:
    with CheckpointManager(store_path, experiment="x"):
        pass
    document = store_path / "store.json"
    document.write_bytes(document.read_bytes()[:-3])
    with pytest.raises(CorruptionError, match="store.json"):
        CheckpointManager(store_path, experiment="x")


def test_a_folder_that_may_not_be_written() -> None:
    """In a process of somebody without rights, since root may write anywhere."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            said = b"no error"
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                CheckpointManager(f"{folder}/store", experiment="x")
            except StoreError as error:
                said = f"{error.kind} {error}".encode()
            finally:
                os.write(writing, said)
                os._exit(0)
        os.close(writing)
        with open(reading) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        assert said.startswith("permission ")
        assert folder in said


def test_a_symbolic_link_in_a_store_is_not_followed(store_path: Path, tmp_path: Path) -> None:
    with CheckpointManager(store_path, experiment="x") as manager:
        manager.save({"w": np.arange(1000)}, step=1, wait=True)
        away = tmp_path / "away"
        (store_path / "packs" / "x").rename(away)
        (store_path / "packs" / "x").symlink_to(away)
        with pytest.raises((StoreError, CorruptionError)):
            manager.load()
        assert isinstance(manager.save({"w": np.arange(1000) + 1}, step=2).exception(60), StoreError)


def test_a_state_that_changes_shape_between_save_and_load(store_path: Path) -> None:
    with CheckpointManager(store_path, experiment="x") as manager:
        manager.save({"net": {"w": np.zeros((3, 4))}}, step=1, wait=True)
        with pytest.raises(
            StateMismatchError, match=r"net/w: saved with shape \[3, 4\], like= has \[4, 4\]"
        ) as caught:
            manager.load(like={"net": {"w": np.zeros((4, 4))}})
        assert caught.value.paths == ("net/w",)


def test_a_manifest_cut_in_half_names_its_place_on_the_disk(store_path: Path) -> None:
    with CheckpointManager(store_path, experiment="x") as manager:
        saved = manager.save({"w": np.zeros(3)}, step=1, wait=True).result()
        path = store_path / saved.key
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CorruptionError, match=saved.key):
            manager.load()
