"""Manifests that were read before, as long as they stand unchanged."""

from __future__ import annotations

from ckpt_core import clock
from ckpt_core.errors import CkptError
from ckpt_core.maintenance.listings import SETTLED
from ckpt_core.perf.cache import CacheManager
from ckpt_core.repository import Committed, Repository
from ckpt_core.stores import ObjectInfo

__all__ = ["Manifests"]

_IN_MEMORY = 8
"""How many times the bytes of its document a manifest takes, about."""
_MOST = 4096


class Manifests:
    """Reads the manifests of one store. Thread-safe.

    A manifest never changes, but it may be forgotten, or damaged on the disk: so each time its size and date are looked
    at, which costs a hundredth of reading it. Only one that has had the same date for longer than a file system's
    clock ticks is kept.
    """

    def __init__(self, repository: Repository, cache: CacheManager) -> None:
        self._repository = repository
        self._cache = cache
        self._seen: dict[str, tuple[ObjectInfo, float]] = {}

    def read(self, key: str) -> Committed:
        """As `Repository.read`, and raises what that raises."""
        try:
            info = self._repository.store.info(key)
            if self._is_settled(key, info):
                own = (
                    self._repository.alone()
                )  # what a mirror gives instead is not kept: it is to be told each time
                return self._cache.find(
                    "manifests", key, info, lambda: own.read(key), lambda found: _IN_MEMORY * info.size
                )
        except CkptError:
            pass
        return self._repository.read(key)

    def _is_settled(self, key: str, info: ObjectInfo) -> bool:
        now = clock.monotonic()
        known = self._seen.get(key)
        if known is not None and known[0] == info:
            return now - known[1] > SETTLED
        if len(self._seen) >= _MOST:
            self._seen.clear()
        self._seen[key] = (info, now)
        return False
