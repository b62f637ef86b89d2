"""A private folder for what is on its way into a store or out of it, where there is room for it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckpt_core import ids
from ckpt_core.stores import LocalStore, Store
from ckpt_core.stores.contract import TEMPORARY

__all__ = ["scratch_folder"]


@contextmanager
def scratch_folder(store: Store) -> Iterator[Path]:
    """A folder that nobody else can look into, gone at the end: in a local store itself, where there is most room and
    a sweep finds what a killed process leaves; else, or where that cannot be written to, where the system has its
    own (`TMPDIR`)."""
    folder = _beside(store) or Path(tempfile.mkdtemp(prefix="ckpt-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _beside(store: Store) -> Path | None:
    if not isinstance(store, LocalStore):
        return None
    folder = store.root / f"{TEMPORARY}{ids.token()}"
    try:
        os.mkdir(folder, 0o700)
    except OSError:
        return None
    return folder
