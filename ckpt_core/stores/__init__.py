"""Stores: where bytes live. One contract, found by URL scheme through the group `ckpt_core.stores`."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path

from ckpt_core.errors import MissingExtraError, UsageError
from ckpt_core.stores.contract import Generation, ObjectInfo, ObjectReader, ObjectWriter, Store
from ckpt_core.stores.local import LocalStore
from ckpt_core.stores.memory import MemoryStore

__all__ = [
    "Generation",
    "LocalStore",
    "MemoryStore",
    "ObjectInfo",
    "ObjectReader",
    "ObjectWriter",
    "Store",
    "open_store",
]


def open_store(root: str | os.PathLike[str] | Store) -> Store:
    """The store at a path or URL. Nothing is made yet.

    Raises UsageError for what is neither, StoreError for a file, MissingExtraError for a scheme that
    nothing installed serves.
    """
    if isinstance(root, Store):
        return root
    if not isinstance(root, (str, os.PathLike)) or not (text := str(os.fspath(root))).strip():
        raise UsageError(f"{root!r} is neither a path nor a URL of a store", kind="path")
    scheme, separator, _ = text.partition("://")
    if not separator:
        return LocalStore(_expanded(text))
    for entry in entry_points(group="ckpt_core.stores", name=scheme):
        store: Store = entry.load()(text)
        return store
    known = sorted({entry.name for entry in entry_points(group="ckpt_core.stores")})
    raise MissingExtraError(
        f"no store serves {scheme}:// here (known: {', '.join(known)}); install the package that does",
        scheme=scheme,
    )


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{text!r} cannot be a path: {error}", kind="path") from error
