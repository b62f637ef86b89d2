"""What `examine` looks at around a store: its folder and file system, clocks, leftovers, versions."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ckpt_core import clock
from ckpt_core.config import version_of
from ckpt_core.maintenance.findings import Finding
from ckpt_core.maintenance.wording import counted, size
from ckpt_core.repository import Repository, layout
from ckpt_core.stores import LocalStore
from ckpt_core.stores.contract import TEMPORARY

__all__ = [
    "clocks",
    "file_system",
    "permissions",
    "root_of",
    "store_time",
    "strangers",
    "temporaries",
    "versions",
]

_DISTRIBUTIONS = ("ckpt-core", "numpy", "msgspec", "safetensors", "sqlalchemy", "torch", "lightning")
_STALE_SECONDS = 24 * 3600.0  # as old as prune's sweep wants them
_SKEW_SECONDS = 60.0
_KNOWN = frozenset(
    {
        layout.STORE_DOCUMENT,
        layout.MIRROR_DOCUMENT,
        "catalog.db",
        "catalog.db-wal",
        "catalog.db-shm",
        "catalog.db-journal",
        "backups",
        "leases",
        "quarantine",
        layout.MANIFESTS,
        layout.PACKS,
        layout.TRASH,
        layout.REFERENCES,
        layout.METRICS,
        layout.SIGNATURES,
        layout.EXPERIMENTS,
    }
)


def root_of(repository: Repository) -> Path | None:
    store = repository.store
    return store.root if isinstance(store, LocalStore) else None


def permissions(repository: Repository) -> Iterator[Finding]:
    root = root_of(repository)
    if root is None:
        return
    denied = [
        f"{path.relative_to(root.parent)} cannot be {word}"
        for path in (root, *(root / name for name in sorted(_KNOWN) if (root / name).exists()))
        for right, word in ((os.R_OK, "read"), (os.W_OK, "written"))
        if not os.access(path, right)
    ]
    if denied:
        yield Finding(
            "error",
            "permissions",
            "; ".join(denied),
            "give this user read and write permission (chown, chmod)",
        )
    else:
        yield Finding("ok", "permissions", "this user may read and write")


def file_system(repository: Repository) -> Iterator[Finding]:
    root = root_of(repository)
    if root is None:
        return
    from ckpt_core.catalog.mounts import is_on_network

    if is_on_network(root):
        yield Finding(
            "note",
            "file-system",
            "the store is on a network file system: saves are as durable as its server says, and several "
            "machines that write to an SQLite catalog there may corrupt it",
            "if several machines write, keep the catalog on a local disk: --catalog sqlite:////local/catalog.db",
        )
    else:
        yield Finding("ok", "file-system", "local")


def clocks(repository: Repository) -> Iterator[Finding]:
    root = root_of(repository)
    if root is None or not os.access(root, os.W_OK):
        return
    skew = repository.store.now() - clock.now().timestamp()
    if abs(skew) > _SKEW_SECONDS:
        yield Finding(
            "warning",
            "clock",
            f"the store's clock is {skew:+.0f} s from this machine's",
            "set both by NTP: ages and the order of checkpoints look wrong",
        )


def store_time(repository: Repository) -> float:
    root = root_of(repository)
    if root is not None and not os.access(root, os.W_OK):
        return clock.now().timestamp()
    return repository.store.now()


def temporaries(repository: Repository) -> Iterator[Finding]:
    root = root_of(repository)
    if root is None:
        return
    limit = store_time(repository) - _STALE_SECONDS
    count = total = 0
    for folder, _, names in os.walk(root):
        inside = TEMPORARY in folder[len(str(root)) :]
        for name in names:
            if inside or name.startswith(TEMPORARY):
                with suppress(FileNotFoundError):  # its writer finished
                    status = os.lstat(os.path.join(folder, name))
                    if status.st_mtime < limit:
                        count, total = count + 1, total + status.st_size
    if count:
        yield Finding(
            "warning",
            "temporaries",
            f"{counted(count, 'file')} ({size(total)}) are left of interrupted writes",
            "`ckpt prune` removes them",
        )
    else:
        yield Finding("ok", "temporaries", "none are stale")


def strangers(repository: Repository) -> Iterator[Finding]:
    root = root_of(repository)
    if root is None:
        return
    names = sorted(name for name in os.listdir(root) if name not in _KNOWN and not name.startswith(TEMPORARY))
    if names:
        yield Finding(
            "note",
            "strangers",
            f"the folder holds what is not the store's: {', '.join(names[:5])}",
            "nothing, if you know what it is",
        )


def versions() -> Iterator[Finding]:
    found = [f"{name} {version}" for name in _DISTRIBUTIONS if (version := version_of(name))]
    yield Finding(
        "ok",
        "versions",
        ", ".join([f"Python {platform.python_version()}", *found, f"SQLite {sqlite3.sqlite_version}"]),
    )
