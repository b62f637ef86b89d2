"""Stores: where bytes live. One contract, found by URL scheme through the group `ckpt_core.stores`."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path

from ckpt_core.errors import MissingExtraError
from ckpt_core.stores.contract import ObjectInfo, ObjectReader, ObjectWriter, Store
from ckpt_core.stores.local import LocalStore
from ckpt_core.stores.memory import MemoryStore

__all__ = ["LocalStore", "MemoryStore", "ObjectInfo", "ObjectReader", "ObjectWriter", "Store", "open_store"]


def open_store(root: str | os.PathLike[str] | Store) -> Store:
    """The store at a path or URL. Raises MissingExtraError for a scheme that nothing installed serves."""
    if isinstance(root, Store):
        return root
    text = os.fspath(root)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return LocalStore(Path(text).expanduser())
    for entry in entry_points(group="ckpt_core.stores", name=scheme):
        store: Store = entry.load()(text)
        return store
    known = sorted({entry.name for entry in entry_points(group="ckpt_core.stores")})
    raise MissingExtraError(
        f"no store serves {scheme}:// here (known: {', '.join(known)}); install the package that does",
        scheme=scheme,
    )
