"""Manifests, and forwardings of rewritten packs, that were read before, as long as they stand unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ckpt_core import clock
from ckpt_core.errors import CkptError
from ckpt_core.format.documents import Forward
from ckpt_core.maintenance.listings import SETTLED
from ckpt_core.perf.cache import CacheManager
from ckpt_core.repository import Committed, Repository, layout, read_forward
from ckpt_core.stores import ObjectInfo

__all__ = ["Manifests"]

T = TypeVar("T")

_IN_MEMORY = 8
"""How many times the bytes of its document a manifest takes, about."""
_MOST = 4096


class Manifests:
    """Reads the manifests of one store, and the forwardings. Thread-safe.

    A manifest never changes, but it may be forgotten, or damaged on the disk; a forwarding may come to lead past
    another. So each time size and date are looked at, which costs a hundredth of reading. Only what has had the same
    date for longer than a file system's clock ticks is kept.
    """

    def __init__(self, repository: Repository, cache: CacheManager) -> None:
        self._repository = repository
        self._cache = cache
        self._seen: dict[str, tuple[ObjectInfo, float]] = {}

    def read(self, key: str) -> Committed:
        """As `Repository.read`, and raises what that raises."""
        own = self._repository.alone()  # what a mirror gives instead is not kept: it is to be told each time
        found = self._kept("manifests", key, lambda: own.read(key))
        return self._repository.read(key) if found is None else found

    def forward(self, pack: str) -> Forward:
        """As `read_forward`, and raises what that raises."""
        store = self._repository.store
        found = self._kept("forwards", layout.forward_key(pack), lambda: read_forward(store, pack))
        return read_forward(store, pack) if found is None else found

    def _kept(self, region: str, key: str, read: Callable[[], T]) -> T | None:
        """What is kept, or will be; None for what cannot be, or not yet."""
        try:
            info = self._repository.store.info(key)
            if self._is_settled(key, info):
                return self._cache.find(region, key, info, read, lambda found: _IN_MEMORY * info.size)
        except CkptError:
            pass
        return None

    def _is_settled(self, key: str, info: ObjectInfo) -> bool:
        now = clock.monotonic()
        known = self._seen.get(key)
        if known is not None and known[0] == info:
            return now - known[1] > SETTLED
        if len(self._seen) >= _MOST:
            self._seen.clear()
        self._seen[key] = (info, now)
        return False
