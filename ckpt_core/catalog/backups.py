"""Copies of an SQLite catalog in a folder beside it: made before whatever changes much, kept by a small rotation.

They are for what the store cannot tell again: the audit trail and the record of checks. Those of a catalog on a
server, which are files of the same kind, are made in `copying.py`.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from sqlalchemy import make_url

from ckpt_core import clock
from ckpt_core.errors import CatalogError, NotFoundError, UsageError

__all__ = ["BACKUPS", "KEEP", "back_up", "backups_of", "choose", "file_of", "move_aside", "restore"]

BACKUPS = "backups"
KEEP = 5
"""So many of the newest are kept."""

_STALE_SECONDS = 3600.0
_log = logging.getLogger("ckpt_core.catalog")


def file_of(url: str) -> Path | None:
    """The file of an SQLite catalog; None for one on a server. Raises UsageError for one in memory."""
    found = make_url(url)
    if found.get_backend_name() != "sqlite":
        return None
    if found.database in (None, "", ":memory:"):
        raise UsageError("the catalog is in memory, where nothing is backed up", kind="catalog")
    return Path(os.path.abspath(str(found.database)))


def back_up(path: Path, reason: str, *, spare: Path | None = None, beside: Path | None = None) -> Path:
    """A copy of the SQLite file, durable when this returns, by SQLite's online backup: others may go on writing.

    `reason` becomes a part of its name. `spare`: an older copy that stays, also where it is one too many. `beside`:
    the catalog that it is a backup of, if that is not the file itself. Raises CatalogError (kind `backup`); then no
    older copy is touched.
    """
    beside = path if beside is None else beside
    folder = beside.parent / BACKUPS
    name = f"{beside.stem}-{reason}-{clock.now():%Y%m%dT%H%M%S%fZ}.db"
    final, partial = folder / name, folder / f".{name}.partial"
    try:
        folder.mkdir(exist_ok=True)
        if folder.is_symlink():
            raise OSError(f"{folder} is a symbolic link, and is not followed")
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(partial)) as copy:
            source.backup(copy)
        _flush(partial)
        os.replace(partial, final)
        _flush(folder)
        _remove_left(beside, final.stat().st_mtime - _STALE_SECONDS)
    except (OSError, sqlite3.Error) as error:
        with suppress(OSError):
            partial.unlink()
        raise CatalogError(
            f"the backup of the catalog {path} in {folder} failed ({error}): make room or give write permission "
            "there, then try again",
            kind="backup",
            url=str(path),
        ) from error
    for old in backups_of(beside)[KEEP:]:
        if old != spare:
            with suppress(OSError):
                old.unlink()
    return final


def backups_of(path: Path) -> list[Path]:
    """The copies of a catalog, the newest first."""
    folder = path.parent / BACKUPS
    found = [] if folder.is_symlink() else folder.glob(f"{path.stem}-*-*Z.db")
    return sorted(
        (copy for copy in found if copy.is_file() and not copy.is_symlink()),
        key=lambda copy: copy.stem.rpartition("-")[2],
        reverse=True,
    )


def restore(path: Path, name: str | None = None) -> Path:
    """Puts a copy (the newest, or the one of that name) in the catalog's place; returns which it was.

    What is there now is backed up first, if it can be read; what cannot be is moved aside. Others may have it
    open: they see the old contents or the new. Raises NotFoundError, CatalogError.
    """
    chosen = choose(path, name)
    with closing(_opened(chosen)) as source:
        try:
            if path.exists():
                back_up(path, "restore", spare=chosen)
            with closing(sqlite3.connect(path, timeout=30)) as target:
                source.backup(target)
            _flush(path)
        except (OSError, sqlite3.OperationalError) as error:  # it is held, or there is no room
            raise CatalogError(
                f"the catalog {path} cannot be written ({error}): try again", kind="locked", url=str(path)
            ) from error
        except (CatalogError, sqlite3.DatabaseError) as error:
            cause = error.__cause__ if isinstance(error, CatalogError) else error
            if not isinstance(cause, sqlite3.DatabaseError) or isinstance(cause, sqlite3.OperationalError):
                raise
            _take_the_place(source, path)
    return chosen


def choose(path: Path, name: str | None = None) -> Path:
    """The newest backup of a catalog, or the one of this name, looked through for damage. Raises NotFoundError,
    CatalogError (kind `corrupt`)."""
    found = backups_of(path)
    matching = found if name is None else [copy for copy in found if name in (copy.name, copy.stem)]
    if not matching:
        there = ", ".join(copy.name for copy in found)
        raise NotFoundError(
            f"the catalog {path} has no backup{f' {name!a}' if name else ''}; "
            + (f"there are {there}" if there else "`ckpt reindex` builds it anew from the store"),
            kind="backup",
        )
    chosen = matching[0]
    with closing(_opened(chosen)) as source:
        try:
            (damage,) = source.execute("PRAGMA quick_check").fetchone()
        except sqlite3.DatabaseError as error:
            damage = str(error)
    if damage != "ok":
        raise CatalogError(
            f"the backup {chosen} is damaged ({damage}): name another, or run `ckpt reindex`",
            kind="corrupt",
            url=str(chosen),
        )
    return chosen


def _opened(copy: Path) -> sqlite3.Connection:
    """Immutable: a copy knows write-ahead logging, too, and its helper files need room that may not be there."""
    return sqlite3.connect(f"{copy.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


def _take_the_place(source: sqlite3.Connection, path: Path) -> None:
    """Puts a copy in the place of a damaged catalog, which is moved aside when the copy is durable."""
    partial = path.parent / BACKUPS / f".{path.stem}-{clock.now():%Y%m%dT%H%M%S%fZ}.partial"
    try:
        with closing(sqlite3.connect(partial)) as copy:
            source.backup(copy)
        _flush(partial)
        move_aside(path)
        os.replace(partial, path)
        _flush(path.parent)
    except (OSError, sqlite3.Error) as error:
        with suppress(OSError):
            partial.unlink()
        raise CatalogError(
            f"the damaged catalog {path} could not be replaced ({error}): make room or give write permission "
            "there, then try again",
            kind="backup",
            url=str(path),
        ) from error


def move_aside(path: Path) -> None:
    """Takes an SQLite file that is past use out of the way; it is kept among the backups. Raises OSError."""
    (path.parent / BACKUPS).mkdir(exist_ok=True)
    stamp = f"{clock.now():%Y%m%dT%H%M%S%fZ}"
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", path.parent / BACKUPS / f"damaged-{stamp}-{path.name}{suffix}")
    _log.warning("the damaged catalog %s was moved to %s", path, path.parent / BACKUPS)


def _remove_left(path: Path, limit: float) -> None:
    """Removes what backups left behind that were killed: not written to since `limit`, by the clock of the disk."""
    for left in (path.parent / BACKUPS).glob(f".{path.stem}-*.partial*"):
        with suppress(OSError):
            if left.stat().st_mtime < limit:
                left.unlink()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
