"""A circuit breaker: what fails again and again is left out for a while, and then tried once. Knows no hooks."""

from __future__ import annotations

import threading
from typing import Literal, TypeAlias

from ckpt_core import clock

__all__ = ["Circuit", "CircuitState"]

CircuitState: TypeAlias = Literal["closed", "open", "half-open"]

LONGEST = 3600.0
"""Seconds after which it is tried again, however often it has failed."""


class Circuit:
    """Opens after `failures` in a row, and half-opens after `seconds` for one call, which closes it or opens it again
    for twice as long. With `failures` None it never opens. Each call that it admits ends in one of the three others.
    """

    def __init__(self, failures: int | None, seconds: float) -> None:
        self._most = failures
        self._first = seconds
        self._seconds = seconds
        self._row = 0
        self._until: float | None = None
        self._trying = False
        self._lock = threading.RLock()

    @property
    def state(self) -> CircuitState:
        """`open`: calls are left out. `half-open`: the next call, or one that is under way, decides."""
        with self._lock:
            if self._until is None:
                return "closed"
            return "half-open" if self._trying or clock.monotonic() >= self._until else "open"

    @property
    def seconds(self) -> float:
        """For how long it opens, or has opened last."""
        return self._seconds

    def admits(self) -> bool:
        """Whether a call may be made now."""
        if self._until is None:
            return True
        with self._lock:
            if self._until is None:
                return True
            if self._trying or clock.monotonic() < self._until:
                return False
            self._trying = True
            return True

    def succeeded(self) -> bool:
        """The call went well; whether that closed the circuit."""
        if not self._row:
            return False
        with self._lock:
            closed = self._until is not None
            self._row, self._until, self._trying, self._seconds = 0, None, False, self._first
            return closed

    def failed(self) -> bool:
        """The call failed; whether that opened the circuit, or opened it again."""
        with self._lock:
            self._row += 1
            if self._until is not None:
                if not self._trying:  # it began before the circuit opened
                    return False
                self._seconds = min(2 * self._seconds, max(LONGEST, self._first))
            elif self._most is None or self._row < self._most:
                return False
            self._trying = False
            self._until = clock.monotonic() + self._seconds
            return True

    def undecided(self) -> None:
        """The call was not made after all."""
        with self._lock:
            self._trying = False
