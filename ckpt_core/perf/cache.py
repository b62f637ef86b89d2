"""What was worked out once and need not be again: least recently used goes first, and nothing stays for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar, final

from cachetools import TTLCache

from ckpt_core import clock

__all__ = ["CacheManager", "CacheStats"]

T = TypeVar("T")


@dataclass(slots=True)
class CacheStats:
    """How often a region of the cache was asked, and how often it knew."""

    hits: int = 0
    misses: int = 0

    @property
    def rate(self) -> float | None:
        """The share of hits; None where nothing was asked."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None


@dataclass(frozen=True, slots=True)
class _Entry:
    token: Hashable
    value: Any
    size: int


@final
class CacheManager:
    """Values by region and key, each with a token that says what it was made of. Thread-safe.

    At most `entries` values of `nbytes` together stay, by the sizes that are given, none longer than `seconds`. A value
    whose token is not the one that is asked for counts as absent: so whoever asks says what the world looks like
    now, and never gets what it looked like before.
    """

    def __init__(self, *, entries: int = 4096, nbytes: int = 64 << 20, seconds: float = 600.0) -> None:
        self._most = entries
        self._nbytes = nbytes
        self._lock = threading.Lock()
        self._kept: TTLCache[tuple[str, Hashable], _Entry] = TTLCache(
            nbytes, seconds, timer=clock.monotonic, getsizeof=lambda entry: entry.size
        )
        self._stats: dict[str, CacheStats] = {}

    def find(
        self, region: str, key: Hashable, token: Hashable, make: Callable[[], T], size: Callable[[T], int]
    ) -> T:
        """The value that is kept under a key and was made of the same; else what `make` returns, which is kept.

        Whatever `make` raises goes through. Two threads may both make a value; both are right.
        """
        with self._lock:
            stats = self._stats.setdefault(region, CacheStats())
            entry = self._kept.get((region, key))
            if entry is not None and entry.token == token:
                stats.hits += 1
                value: T = entry.value
                return value
            stats.misses += 1
        made = make()
        kept = _Entry(token, made, max(1, size(made)))
        with self._lock:
            self._kept.pop((region, key), None)
            if self._most and kept.size <= self._nbytes:
                while len(self._kept) >= self._most:
                    self._kept.popitem()
                self._kept[region, key] = kept
        return made

    def clear(self) -> None:
        """Forgets every value; the figures stay."""
        with self._lock:
            self._kept.clear()

    @property
    def entries(self) -> int:
        """How many values are kept."""
        with self._lock:
            return len(self._kept)

    @property
    def nbytes(self) -> int:
        """What they take together, by the sizes that were given."""
        with self._lock:
            return int(self._kept.currsize)

    def stats(self) -> dict[str, CacheStats]:
        """The figures of each region."""
        with self._lock:
            return {region: CacheStats(s.hits, s.misses) for region, s in self._stats.items()}
