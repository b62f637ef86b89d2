"""Actors on one store, each stopped before every operation until it is told to go on; one may die there."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ckpt_core.stores import MemoryStore, Store
from crash.wrappers import When, WrapperStore

__all__ = ["Actor", "ClockedStore", "Crash"]


class Crash(BaseException):
    """The machine that this actor ran on is gone: nothing that it does reaches the store any more."""


class ClockedStore(MemoryStore):
    """A store whose clock is set by hand."""

    time = 1_000_000.0

    def now(self) -> float:
        return self.time


class _Gate(WrapperStore):
    def __init__(self, inner: Store, wait: Callable[[str], None]) -> None:
        super().__init__(inner)
        self._wait = wait

    def _on(self, operation: str, key: str, when: When) -> None:
        if when == "before":
            self._wait(f"{operation} {key}")

    def now(self) -> float:
        self._wait("now")
        return super().now()


class Actor:
    """Runs one operation at a time, on a thread of its own, as far as it is let. `store` is its view."""

    def __init__(self, name: str, inner: Store, tell: Callable[[str], None]) -> None:
        self.name = name
        self.store = _Gate(inner, self._stop_here)
        self.error: BaseException | None = None
        self._tell = tell
        self._dead = False
        self._thread: threading.Thread | None = None
        self._may_go, self._stands = threading.Semaphore(0), threading.Semaphore(0)

    @property
    def busy(self) -> bool:
        """Whether an operation is under way."""
        return self._thread is not None

    def begin(self, operation: Callable[[], object]) -> None:
        """Starts an operation, up to its first step."""

        def run() -> None:
            try:
                operation()
            except BaseException as error:
                self.error = error
            finally:
                self._thread = None
                self._stands.release()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        self._wait()

    def step(self, count: int) -> None:
        """Lets the operation make so many steps, or end."""
        while count and self.busy:
            self._may_go.release()
            self._wait()
            count -= 1

    def finish(self) -> None:
        """Lets the operation end."""
        while self.busy:
            self.step(1000)

    def die(self) -> None:
        """Ends the operation: its next step is not made, nor any other."""
        self._dead = True
        self.finish()

    def _wait(self) -> None:
        assert self._stands.acquire(timeout=60), f"{self.name} neither steps nor ends"

    def _stop_here(self, step: str) -> None:
        if threading.current_thread() is not self._thread:
            return
        self._stands.release()
        self._may_go.acquire()
        if self._dead:
            raise Crash
        self._tell(f"{self.name}: {step}")
