"""How long things took, how many bytes went where: the figures of one manager, gathered while it works."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import msgspec

from ckpt_core import clock
from ckpt_core.perf.cache import CacheManager

__all__ = ["Figures", "are_figures"]

_KEPT = 1024


class _Latency(msgspec.Struct):
    count: int
    p50: float
    p99: float


class _Region(msgspec.Struct):
    hits: int
    misses: int
    rate: float | None


class _Cache(msgspec.Struct):
    regions: dict[str, _Region]
    entries: int
    bytes: int


class _Shape(msgspec.Struct):
    latencies: dict[str, _Latency]
    bytes: dict[str, int]
    cache: _Cache
    queues: dict[str, int]


def are_figures(found: Any) -> bool:
    """Whether something that a store holds has the shape of `CheckpointManager.stats`."""
    try:
        msgspec.convert(found, _Shape)
    except (msgspec.ValidationError, RecursionError):
        return False
    return True


@final
class Figures:
    """Latencies by name, of each the last 1024; sums by name; and the cache. Thread-safe."""

    def __init__(self) -> None:
        self.cache = CacheManager()
        self._lock = threading.Lock()
        self._seconds: dict[str, deque[float]] = {}
        self._counts: dict[str, int] = {}
        self._sums: dict[str, int] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Takes the time of a block, unless it raises."""
        begun = clock.monotonic()
        yield
        passed = clock.monotonic() - begun
        with self._lock:
            self._seconds.setdefault(name, deque(maxlen=_KEPT)).append(passed)
            self._counts[name] = self._counts.get(name, 0) + 1

    def add(self, name: str, amount: int) -> None:
        """Adds to a sum."""
        with self._lock:
            self._sums[name] = self._sums.get(name, 0) + amount

    def stats(self) -> dict[str, Any]:
        """`latencies`: of each name `count`, and `p50` and `p99` of the last ones in seconds. `bytes`: sums. `cache`:
        of each region `hits`, `misses` and `rate`, and how much is kept."""
        with self._lock:
            latencies = {
                name: {"count": self._counts[name], **_percentiles(sorted(seconds))}
                for name, seconds in sorted(self._seconds.items())
            }
            sums = dict(sorted(self._sums.items()))
        regions = {
            region: {"hits": found.hits, "misses": found.misses, "rate": found.rate}
            for region, found in sorted(self.cache.stats().items())
        }
        kept = {"entries": self.cache.entries, "bytes": self.cache.nbytes}
        return {"latencies": latencies, "bytes": sums, "cache": {"regions": regions, **kept}}


def _percentiles(ordered: list[float]) -> dict[str, float]:
    last = len(ordered) - 1
    return {"p50": ordered[round(0.5 * last)], "p99": ordered[round(0.99 * last)]}
