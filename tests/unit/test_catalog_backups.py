"""Copies of the catalog: made before whatever changes much, few, whole, and put back while others read."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CatalogError, CheckpointManager, NotFoundError
from ckpt_core.catalog import Catalog, backups
from ckpt_core.pipeline.workspace import Workspace
from contract.mounts import small_disk

STATE = {"w": np.arange(100.0)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with CheckpointManager(tmp_path / "store", experiment="x") as manager:
        for step in (1, 2):
            manager.save(STATE | {"n": step}, step=step, tags=[f"t{step}"], wait=True)
    return tmp_path / "store"


@pytest.fixture
def path(root: Path) -> Path:
    return root / "catalog.db"


def events(path: Path) -> list[str]:
    with Catalog.open(f"sqlite:///{path}") as catalog:
        assert catalog.verify_audit() is None
        return [entry.event for entry in catalog.audit_log()]


def test_a_copy_is_what_the_catalog_was(path: Path) -> None:
    before = events(path)
    copy = backups.back_up(path, "manual")
    with Catalog.open(f"sqlite:///{path}") as catalog:
        catalog.audit("later", "x", "done")
    assert events(path) == ["later", *before]
    assert backups.restore(path) == copy
    assert events(path) == before
    assert events(backups.backups_of(path)[0]) == ["later", *before], "what was there was backed up first"


def test_of_many_the_newest_few_are_kept(path: Path) -> None:
    made = [backups.back_up(path, reason) for reason in ("a", "b", "a", "c", "b", "prune", "b")]
    assert backups.backups_of(path) == made[: -backups.KEEP - 1 : -1]
    assert sorted(path.parent.glob("backups/*")) == sorted(made[-backups.KEEP :])


def test_one_is_made_before_each_prune_reindex_and_repair(root: Path, path: Path) -> None:
    workspace = Workspace.open(root)
    try:
        workspace.prune(workspace.plan_prune())
        assert backups.backups_of(path) == [], "there was nothing to prune"
        workspace.forget(workspace.index.checkpoints()[:1])
        workspace.prune(workspace.plan_prune())
        workspace.reindex()
        workspace.repair(dry_run=True)
        workspace.repair()
        assert [copy.name.split("-")[1] for copy in backups.backups_of(path)] == [
            "repair",
            "reindex",
            "prune",
        ]
    finally:
        workspace.close()


def test_a_manager_that_has_it_open_goes_on(root: Path, path: Path) -> None:
    with CheckpointManager(root, experiment="x") as manager:
        backups.back_up(path, "manual")
        manager.save(STATE | {"n": 3}, step=3, wait=True)
        backups.restore(path)
        assert [c.step for c in manager.checkpoints()] == [1, 2, 3], "it is brought in line"
        manager.save(STATE | {"n": 4}, step=4, wait=True)
        assert [c.step for c in manager.checkpoints()] == [1, 2, 3, 4]
        assert manager.failures == []
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty", "gone"])
def test_a_damaged_catalog_is_moved_aside(root: Path, path: Path, damage: str) -> None:
    before = events(path)
    backups.back_up(path, "manual")
    data = path.read_bytes()
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"garbage": b"x" * len(data), "cut": data[: len(data) // 3], "empty": b""}[damage])
    backups.restore(path)
    assert events(path) == before
    with CheckpointManager(root, experiment="x") as manager:
        assert [c.step for c in manager.checkpoints()] == [1, 2]


def test_a_damaged_copy_is_not_put_back(path: Path) -> None:
    copy = backups.back_up(path, "manual")
    data = copy.read_bytes()
    copy.write_bytes(data[:4096] + b"x" * (len(data) - 4096))
    before = events(path)
    with pytest.raises(CatalogError, match="is damaged") as caught:
        backups.restore(path)
    assert caught.value.kind == "corrupt"
    assert events(path) == before


def test_by_name(path: Path) -> None:
    with pytest.raises(NotFoundError, match="ckpt reindex"):
        backups.restore(path)
    first, _ = backups.back_up(path, "a"), backups.back_up(path, "b")
    assert backups.restore(path, first.name) == first
    with pytest.raises(NotFoundError, match="there are"):
        backups.restore(path, "../../etc/passwd")


def test_what_is_put_back_is_not_rotated_away(path: Path) -> None:
    first = backups.back_up(path, "first")
    for number in range(backups.KEEP - 1):
        backups.back_up(path, f"n{number}")
    assert backups.restore(path, first.name) == first
    assert first.exists()
    backups.back_up(path, "later")
    assert not first.exists()


def test_what_a_killed_backup_left_goes_with_a_later_one(path: Path) -> None:
    folder = path.parent / backups.BACKUPS
    folder.mkdir()
    old, young = folder / ".catalog-prune-1Z.db.partial", folder / ".catalog-prune-2Z.db.partial-journal"
    for left in (old, young):
        left.write_bytes(b"half")
    os.utime(old, (1e9, 1e9))
    copy = backups.back_up(path, "manual")
    assert sorted(folder.iterdir()) == [young, copy]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_full_disk_does_not_cost_the_catalog(root: Path, path: Path, tmp_path: Path, damaged: bool) -> None:
    before = events(path)
    backups.back_up(path, "manual")
    with small_disk(tmp_path / "disk", "2m") as disk:
        moved = disk / "catalog.db"
        shutil.copytree(path.parent / backups.BACKUPS, disk / backups.BACKUPS)
        shutil.copy(path, moved)
        if damaged:
            moved.write_bytes(b"x" * moved.stat().st_size)
        found = moved.read_bytes()
        ballast = disk / "ballast"
        with pytest.raises(OSError, match="No space"):
            ballast.write_bytes(bytes(3 << 20))
        with pytest.raises(CatalogError, match="try again"):
            backups.restore(moved)
        assert moved.read_bytes() == found
        ballast.unlink()
        backups.restore(moved)
        assert events(moved) == before


def test_where_no_copy_can_be_made_a_prune_goes_on(root: Path, path: Path, caplog: Any) -> None:
    (root / "backups").write_text("in the way")
    with CheckpointManager(root, experiment="x") as manager:
        manager.forget("step=1", grace=0)
        assert manager.prune().manifests == 1
        assert "without a backup" in caplog.text
        assert [c.step for c in manager.checkpoints()] == [2]
