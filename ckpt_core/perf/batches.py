"""Many small items written together: when enough wait, when one has waited long enough, or when asked to."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, final

from ckpt_core import clock

__all__ = ["BatchProcessor", "BatchStats"]

T = TypeVar("T")
_log = logging.getLogger("ckpt_core.perf")


@dataclass(frozen=True, slots=True)
class BatchStats:
    """How a batch processor has done so far. `waiting`: what is not written yet, by weight."""

    waiting: int
    written: int
    batches: int
    failures: int


class _Alarm:
    """When a batch is due. Apart from the processor, so that a thread that waits for it keeps nothing alive."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.at: float | None = None
        self.stopped = False

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def wait(self) -> bool:
        """Whether a batch is due; False when there will be no more."""
        with self.changed:
            while not self.stopped:
                left = None if self.at is None else self.at - clock.monotonic()
                if left is not None and left <= 0:
                    self.at = None
                    return True
                self.changed.wait(left)
        return False


@final
class BatchProcessor(Generic[T]):
    """Collects items and gives them to `write` together, in their order. Thread-safe.

    They are written when `max_items` of them wait (by the thread that adds the last one), when one has waited for
    `max_seconds` (by a thread of its own, which begins with the first item; None: never), by `flush`, and by
    `close`. `write` returns those that could not be written, which wait for the next batch; so do all where it
    raises, which is logged. So nothing is lost while the processor lives, and after a failure `max_items` more
    come before it is tried again by their number.
    """

    def __init__(
        self,
        write: Callable[[list[T]], Sequence[T]],
        *,
        max_items: int = 50_000,
        max_seconds: float | None = None,
        weight: Callable[[T], int] = lambda item: 1,
        name: str = "ckpt-batches",
    ) -> None:
        self._write = write
        self._most = max_items
        self._seconds = max_seconds
        self._weigh = weight
        self._name = name
        self._lock = threading.Lock()
        self._writing = threading.RLock()
        self._items: list[T] = []
        self._waiting = 0
        self._full_at = max_items
        self._written = self._batches = self._failures = 0
        self._alarm: _Alarm | None = None

    def add(self, item: T) -> None:
        """Takes an item. Cheap, unless it makes a batch full."""
        with self._lock:
            self._items.append(item)
            self._waiting += self._weigh(item)
            full = self._waiting >= self._full_at
            first = len(self._items) == 1
        if full:
            self.flush()
        elif first and self._seconds is not None:
            self._set_alarm(self._seconds)

    def flush(self) -> int:
        """Writes everything that was added so far. Returns how much still waits, by weight."""
        with self._writing:
            with self._lock:
                taken, self._items, self._waiting = self._items, [], 0
            left: Sequence[T] = taken
            try:
                left = self._write(taken) if taken else []
            except Exception as error:
                _log.warning("%d items wait for the next batch: %s", len(taken), error, exc_info=error)
            finally:  # also where somebody pressed Ctrl-C
                waiting = self._settle(taken, left)
        return waiting

    def close(self) -> int:
        """Writes what waits, and ends the thread. Returns what could not be written, by weight. May be repeated."""
        waiting = self.flush()
        if self._alarm is not None:
            self._alarm.stop()
        return waiting

    def stats(self) -> BatchStats:
        """How it has done so far."""
        with self._lock:
            return BatchStats(self._waiting, self._written, self._batches, self._failures)

    def _settle(self, taken: Sequence[T], left: Sequence[T]) -> int:
        """What is left of a batch waits for the next one. Returns how much waits."""
        unwritten = sum(map(self._weigh, left))
        with self._lock:
            if taken:
                self._batches += 1
                self._failures += bool(left)
                self._written += sum(map(self._weigh, taken)) - unwritten
            self._items[:0] = left
            self._waiting += unwritten
            self._full_at = self._waiting + self._most
            waiting = self._waiting
        if left and self._seconds is not None:
            self._set_alarm(self._seconds)
        return waiting

    def _set_alarm(self, seconds: float) -> None:
        with self._lock:
            alarm = self._alarm
            if alarm is None:
                alarm = self._alarm = _Alarm()
                weakref.finalize(self, alarm.stop)
                threading.Thread(
                    target=_ring, args=(alarm, weakref.ref(self)), name=self._name, daemon=True
                ).start()
        with alarm.changed:
            if alarm.at is None:
                alarm.at = clock.monotonic() + seconds
                alarm.changed.notify_all()


def _ring(alarm: _Alarm, reference: weakref.ref[BatchProcessor[T]]) -> None:
    while alarm.wait():
        processor = reference()
        if processor is None:
            return
        processor.flush()
        del processor
