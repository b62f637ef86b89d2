"""The part of a save that training waits for: a place in the queue, and a copy of the state.

What becomes of the copy is `saving`'s. A save that cannot be staged is a failed save, not an exception in
the training loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from ckpt_core.errors import SaveNotDoneError
from ckpt_core.pipeline import staging
from ckpt_core.pipeline.queue import SaveHandle, SaveQueue
from ckpt_core.pipeline.saving import Saver, SaveRequest
from ckpt_core.tree import Flat

__all__ = ["Intake"]

_log = logging.getLogger("ckpt_core.save")


class Intake:
    """Takes in one save at a time and hands it to the saver, on the queue's thread or on the caller's."""

    def __init__(self, queue: SaveQueue, saver: Saver, *, threads: int, staged_bytes: int | None) -> None:
        self._queue = queue
        self._saver = saver
        self._threads = threads
        self._arenas = staging.ArenaPool(staged_bytes)

    def stage(self, request: SaveRequest, flat: Flat, staged: Callable[[], object]) -> SaveHandle:
        """Copies the tensors and returns; the rest is done in the background. `staged` is called between.

        Waits for a place if the queue says so; where it has none, the handle knows why.
        """
        handle = SaveHandle(request.step)
        request = replace(request, threads=self._threads)
        try:
            self._queue.reserve(request.step)
        except SaveNotDoneError as error:
            _log.warning("%s", error)
            handle.fail(error)
            return handle
        arena = self._arenas.acquire()
        try:
            snapshot = staging.copy(flat, arena)
        except MemoryError as error:
            self._arenas.release(arena)
            self._queue.cancel()
            _log.warning(
                "training waits for the save of step %d: %s", request.step, error or "no memory for a copy"
            )
            self._queue.run(handle, lambda h: self._save_live(request, flat, h))
            return handle
        except BaseException as error:
            self._arenas.release(arena)
            self._queue.cancel()
            if not isinstance(error, Exception):
                raise
            self._saver.fail(request, error, handle)
            return handle
        try:
            staged()
        finally:  # a hook that raises is heard, and the save is made all the same
            self._queue.submit(
                handle, lambda h: self._saver.run(request, snapshot, h), lambda: self._arenas.release(arena)
            )
        return handle

    def save_now(self, request: SaveRequest, flat: Flat) -> SaveHandle:
        """Makes the save before it returns, from the live tensors; raises what went wrong."""
        handle = SaveHandle(request.step)
        self._queue.run(handle, lambda h: self._save_live(request, flat, h))
        handle.result()
        return handle

    def clear(self) -> None:
        """Lets go of the memory for copies."""
        self._arenas.clear()

    def _save_live(self, request: SaveRequest, flat: Flat, handle: SaveHandle) -> None:
        request = replace(request, threads=None)  # training waits: there is nobody to leave cores to
        try:
            snapshot = staging.borrow(flat)
        except Exception as error:
            self._saver.fail(request, error, handle)
            return
        self._saver.run(request, snapshot, handle)
