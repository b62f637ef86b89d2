"""The catalog lost in mid-run, in every way a file can be: saves and loads go on, and every row comes back."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager
from ckpt_core.catalog import Catalog, backups, migrate
from ckpt_core.catalog.engine import Database
from ckpt_core.maintenance.doctor import examine
from ckpt_core.maintenance.findings import Finding
from ckpt_core.pipeline import index as index_module
from ckpt_core.pipeline.workspace import Workspace

HOLDER = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("BEGIN EXCLUSIVE" if sys.argv[2] == "all" else "BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


def state(step: int) -> dict[str, Any]:
    return {"w": np.full(100, step), "step": step}


def files(path: Path) -> Iterator[Path]:
    yield from (path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm"))


def remove(path: Path) -> None:
    for file in files(path):
        file.unlink(missing_ok=True)


# -- ways to lose it: each is a context, as some of them must be taken back at the end --------------


@contextmanager
def deleted(path: Path) -> Iterator[None]:
    remove(path)
    yield


@contextmanager
def garbage(path: Path) -> Iterator[None]:
    remove(path)
    path.write_bytes(b"this is no database " * 5000)
    yield


@contextmanager
def emptied(path: Path) -> Iterator[None]:
    remove(path)
    path.write_bytes(b"")
    yield


@contextmanager
def cut_short(path: Path) -> Iterator[None]:
    data = path.read_bytes()
    remove(path)
    path.write_bytes(data[: len(data) // 2 + 700])
    yield


@contextmanager
def page_overwritten(path: Path) -> Iterator[None]:
    """In place and in the middle, under whoever has it open; the log of changes is lost with it."""
    with closing(sqlite3.connect(path)) as database, suppress(sqlite3.OperationalError):
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with open(path, "r+b") as file:
        for page in range(2, os.path.getsize(path) // 4096, 2):
            file.seek(page * 4096)
            file.write(b"\xa5" * 2000)
    yield


@contextmanager
def a_table_dropped(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DROP TABLE checkpoint_packs")
    yield


@contextmanager
def a_folder_in_its_place(path: Path) -> Iterator[None]:
    remove(path)
    path.mkdir()
    yield
    path.rmdir()


@contextmanager
def held_by_another(path: Path, how: str = "writes") -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        yield
        other.kill()


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Marked immutable, as `chmod` does not stop root. Who has it open already goes on; the manager opens it anew."""
    there = [
        str(file) for file in files(path) if file.exists() and not file.name.endswith("shm")
    ]  # it is mapped
    done = subprocess.run(["chattr", "+i", *there], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"files cannot be made immutable here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", *there], check=True)


@contextmanager
def an_older_copy(path: Path) -> Iterator[None]:
    """Another file under the same name."""
    remove(path)
    shutil.copyfile(backups.backups_of(path)[-1], path)
    yield


@contextmanager
def an_older_copy_written_over_it(path: Path) -> Iterator[None]:
    """As `cp` puts a backup back while the file is open: the same file, other contents."""
    path.write_bytes(backups.backups_of(path)[-1].read_bytes())
    for file in list(files(path))[1:]:
        file.unlink(missing_ok=True)
    yield


@contextmanager
def of_a_newer_version(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE catalog_version SET version_num = '9999'")
    yield


@contextmanager
def of_an_older_version(path: Path) -> Iterator[None]:
    """As the first version of all made it, with what that version had seen."""
    with closing(Database.open(f"sqlite:///{path}")) as database:
        migrate.take_back(database, "0001")
    yield


@dataclass(frozen=True)
class Loss:
    how: Callable[[Path], Any]
    told: str = ""
    """What doctor says of it; nothing where the next opening has mended it by itself."""
    mended: str = "opening"
    """What brings every row back: the next `opening`, a `reindex`, or (`moved`) an opening without that file."""


LOSSES = [
    Loss(deleted),
    Loss(emptied),
    Loss(an_older_copy),
    Loss(an_older_copy_written_over_it),
    Loss(of_an_older_version),
    Loss(garbage, "corrupt", "reindex"),
    Loss(cut_short, "corrupt", "reindex"),
    Loss(page_overwritten, "corrupt", "reindex"),
    Loss(a_table_dropped, "not usable", "reindex"),
    Loss(a_folder_in_its_place, "no regular file", "opening"),
    Loss(lambda path: held_by_another(path, "all"), "", "opening"),
    Loss(held_by_another, "", "opening"),
    Loss(read_only, "", "opening"),
    Loss(of_a_newer_version, "newer", "moved"),
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for a locked catalog for a moment only."""
    monkeypatch.setattr(index_module, "_TIMEOUT", 0.05)
    monkeypatch.setattr(index_module, "_SLOW", 0.01)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store whose catalog has been copied when it knew half of what there is now."""
    root = tmp_path / "store"
    with CheckpointManager(root, experiment="x", metric="loss") as manager:
        manager.log({"train": 1.0}, step=1)
        manager.save(state(1), step=1, metrics={"loss": 0.1}, tags=["first"], wait=True)
        backups.back_up(root / "catalog.db", "test")
        manager.log({"train": 2.0}, step=2)
        manager.save(state(2), step=2, metrics={"loss": 0.5}, wait=True)
        manager.pin("step=1")
    return root


def doctor(root: Path) -> Finding:
    workspace = Workspace.open(root)
    try:
        found = examine(workspace.repository, workspace.references, workspace.index.catalog)
    finally:
        workspace.close()
    (finding,) = (each for each in found if each.check == "catalog")
    return finding


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: getattr(loss.how, "__name__", "held"))
def test_saves_and_loads_go_on_and_every_row_comes_back(
    root: Path, loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "catalog.db"
    with CheckpointManager(root, experiment="x", metric="loss") as manager:
        assert manager.load()["step"] == 2
        manager.log({"train": 3.0}, step=3)
        manager.save(state(3), step=3, metrics={"loss": 0.4}, tags=["third"], wait=True)
        with loss.how(path):
            if loss.how is read_only:
                manager.workspace.index.release()
            for step in (4, 5):
                manager.log({"train": float(step)}, step=step)
                handle = manager.save(state(step), step=step, metrics={"loss": 0.3}, tags=[f"s{step}"])
                assert handle.result(60).step == step
                assert manager.load()["step"] == step
            manager.wait()
            assert manager.load("best")["step"] == 1
            assert manager.load("third")["step"] == 3
            assert [c.step for c in manager.checkpoints()] == [1, 2, 3, 4, 5]
            manager.forget("step=2")
            assert [c.step for c in manager.checkpoints()] == [1, 3, 4, 5]
            finding = doctor(root)
            assert loss.told in finding.message
            assert finding.level == "error" if loss.told else finding.level in ("ok", "note", "error")
        assert manager.failures == []
    if loss.mended == "moved":
        assert "upgrade" in finding.message
        path.rename(root / "put-aside.db")
    workspace = Workspace.open(root)
    try:
        if loss.mended == "reindex":
            assert "ckpt reindex" in finding.message + finding.advice
            assert workspace.reindex().checkpoints == 4
        workspace.index.synchronise()
    finally:
        workspace.close()
    assert doctor(root).level == "ok"
    with Catalog.open(f"sqlite:///{path}") as catalog:
        rows = [(c.step, c.tags, c.pinned, c.metrics["loss"]) for c in catalog.checkpoints("x")]
        series = [point.value for point in catalog.metric_series("x", "train")]
        assert catalog.verify_audit() is None
    assert rows == [
        (1, ("first",), True, 0.1),
        (3, ("third",), False, 0.4),
        (4, ("s4",), False, 0.3),
        (5, ("s5",), False, 0.3),
    ]
    assert series == [1.0, 2.0, 3.0, 4.0, 5.0]
