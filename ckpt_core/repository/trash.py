"""Forgotten checkpoints that can still be brought back: each has a note beside it that says for how long."""

from __future__ import annotations

import logging
from typing import final

from ckpt_core.config import actor
from ckpt_core.errors import CkptError, StoreError
from ckpt_core.format.documents import Grace
from ckpt_core.format.sealed import seal, unseal
from ckpt_core.repository import layout
from ckpt_core.stores import ObjectInfo, Store

__all__ = ["GRACE_SECONDS", "Trash"]

GRACE_SECONDS = 86_400.0
"""How long a checkpoint that somebody forgot can be brought back, unless another time is asked for."""

_LIMIT = 1 << 16
_log = logging.getLogger("ckpt_core.repository")


@final
class Trash:
    """The notes of grace in a store. Ages are read off the store's own clock. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def grant(self, key: str, seconds: float) -> None:
        """Notes that the checkpoint whose manifest has this key can be brought back for so long from now on.

        Comes before it is forgotten: nobody must find it in the trash without the note. Raises StoreError.
        """
        self._store.put(layout.grace_key(layout.trash_key(key)), seal(Grace(seconds=seconds, by=actor())))

    def granted(self) -> dict[str, float]:
        """Key in the trash of each manifest that has grace left -> the seconds of it. Raises StoreError."""
        return {key: left for key, left in self._notes() if left > 0}

    def spent(self) -> list[str]:
        """Keys in the trash of the manifests, there or not, whose note has no more to say."""
        return [key for key, left in self._notes() if left <= 0]

    def drop(self, key: str) -> None:
        """Takes the note of a manifest's key in the trash away; none is no error."""
        self._store.delete(layout.grace_key(key))

    def _notes(self) -> list[tuple[str, float]]:
        found = [
            f"{layout.TRASH}/{folder}/{name}"
            for folder in self._store.folders(layout.TRASH)
            for name in self._store.names(f"{layout.TRASH}/{folder}")
            if name.endswith(layout.GRACE_SUFFIX)
        ]
        if not found:
            return []
        try:
            now: float | None = self._store.now()
        except StoreError:  # the store can only be read: nothing is deleted from it either
            now = None
        return [(layout.granted_key(key), self._left(key, now)) for key in sorted(found)]

    def _left(self, key: str, now: float | None) -> float:
        try:
            info: ObjectInfo = self._store.info(key)
            seconds = unseal(self._store.get(key, limit=_LIMIT), Grace, key).seconds
        except FileNotFoundError:  # taken away since the listing
            return 0.0
        except StoreError:
            raise
        except CkptError as error:
            _log.warning("a day of grace, as it is not known how much: %s", error)
            seconds = GRACE_SECONDS
        return seconds if now is None else info.modified + seconds - now
