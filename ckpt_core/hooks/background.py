"""A bounded queue worked off in order by one thread, which lives only while there is work.

Knows nothing of hooks. Its thread is a daemon: work that hangs must not keep a finished process alive, so
whoever owns the queue drains it before the end.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["BackgroundQueue"]

_log = logging.getLogger("ckpt_core.hooks")

Item = TypeVar("Item")


class BackgroundQueue(Generic[Item]):
    """Hands each item to `work`, in order, off the thread that put it."""

    def __init__(self, work: Callable[[Item], None], limit: int) -> None:
        self.limit = limit
        self._work = work
        self._items: deque[Item] = deque()
        # Its lock is re-entrant, as a signal handler may fire events in the midst of `put`.
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, item: Item, *, limited: bool = True) -> bool:
        """Queue an item, without waiting; False if the queue is full or closed, or has no thread to use.

        One that is not `limited` has a place in a full queue, too.
        """
        with self._changed:
            if self._closed or (limited and len(self._items) >= self.limit):
                return False
            self._items.append(item)
            if self._idle():
                thread = threading.Thread(target=self._run, name="ckpt-hooks", daemon=True)
                try:
                    self._thread = thread
                    thread.start()
                except RuntimeError:  # the system's limit is reached, or the interpreter is shutting down
                    self._thread = None
                    self._items.pop()
                    return False
        return True

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until nothing is queued or running; whether that came about within `timeout` seconds.

        From work of this queue itself, which cannot wait for its own end, it returns False at once.
        """
        with self._changed:
            if threading.current_thread() is self._thread:
                return False
            return self._changed.wait_for(self._idle, timeout)

    def close(self, timeout: float | None = None) -> list[Item]:
        """Take no more, drain, and return what was still queued after `timeout` seconds."""
        with self._changed:
            self._closed = True
            own = threading.current_thread() is self._thread
            if own or self.drain(timeout):
                return []
            left = list(self._items)
            self._items.clear()
            return left

    def _idle(self) -> bool:
        # A thread that is not alive is what a forked child inherits.
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._items:
                    self._thread = None
                    self._changed.notify_all()
                    return
                item = self._items.popleft()
            try:
                self._work(item)
            except BaseException:
                _log.exception("background work failed")
            del item  # what it refers to need not live until the next one comes
