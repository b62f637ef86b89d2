"""A second store with the same objects, read where the first one fails. Who keeps it up is another matter."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from ckpt_core.errors import CkptError
from ckpt_core.stores import Store

__all__ = ["Spare"]

T = TypeVar("T")
_log = logging.getLogger("ckpt_core.repository")


class Spare:
    """Gives what is damaged or lost in the first store, under the same digests. Thread-safe.

    `find` opens the second store, or returns None while it is out of reach. `heard` is told the first error
    about each object that was read from there instead: a damage that nobody hears of is never repaired.
    """

    def __init__(self, find: Callable[[], Store | None]) -> None:
        self._find = find
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self.heard: Callable[[CkptError], object] | None = None

    def instead(self, error: CkptError, read: Callable[[Store], T]) -> T:
        """What `read` finds in the second store. Raises `error` where that does not have it either."""
        store = self._find()
        if store is None:
            raise error
        try:
            found = read(store)
        except CkptError as second:
            error.add_note(f"the mirror {store.url} cannot give it either: {second}")
            raise error from second
        self._tell(error, store)
        return found

    def _tell(self, error: CkptError, store: Store) -> None:
        key = str(error.facts.get("key", error))
        with self._lock:
            if key in self._told:
                return
            self._told.add(key)
        _log.error("READ FROM THE MIRROR %s: %s; `ckpt repair` heals the store", store.url, error)
        if self.heard is not None:
            self.heard(error)
