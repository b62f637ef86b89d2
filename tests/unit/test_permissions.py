"""Whom new files are for: whom the umask lets, and nobody else; private keys for their owner alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ckpt_core import CheckpointManager
from ckpt_core.format.signing import new_key

STATE = {"w": np.zeros(5000)}


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def given(path: Path, mode: int) -> int:
    """What a file or folder is created with. SQLite makes its own files, which nobody else can write."""
    if stat.S_ISDIR(mode):
        return 0o777
    return 0o644 if path.name.startswith("catalog") else 0o666


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o002, 0o000], indirect=True, ids=oct)
def test_every_file_of_a_store_has_the_mode_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    root = tmp_path / "new" / "store"
    new_key(tmp_path / "k")
    with CheckpointManager(
        root, experiment="x", parity=10, signing_key=tmp_path / "k", mirror=root.with_name("mirror")
    ) as manager:
        for step in (1, 2, 3):
            manager.save(STATE | {"step": step}, step=step, tags=[f"t{step}"], wait=True)
            manager.log({"loss": 1.0}, step=step)
        manager.pin("latest")
        manager.forget("step=1")
        manager.forget("step=2", grace=0)
        manager.prune()
    found = {path.relative_to(root.parent): path.lstat().st_mode for path in root.parent.rglob("*")}
    assert {path.parts[1] for path in found if len(path.parts) > 1} >= {
        "store.json", "packs", "checkpoints", "refs", "metrics", "signatures", "trash", "catalog.db", "backups", "mirror.json",
    }  # fmt: skip
    wrong = {
        str(path): oct(mode)
        for path, mode in found.items()
        if stat.S_IMODE(mode) != given(path, mode) & ~umask
    }
    assert wrong == {}
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600 & ~umask
    assert stat.S_IMODE((tmp_path / "k.pub").stat().st_mode) == 0o666 & ~umask
