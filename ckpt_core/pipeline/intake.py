"""The part of a save that training waits for: a place in the queue, and a copy of the state.

What becomes of the copy is `saving`'s. A save that cannot be staged is a failed save, not an exception in
the training loop.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from dataclasses import replace

from ckpt_core.errors import SaveNotDoneError, UsageError
from ckpt_core.pipeline import staging
from ckpt_core.pipeline.deferred import Deferred, LazyTensors
from ckpt_core.pipeline.queue import SaveHandle, SaveQueue
from ckpt_core.pipeline.saving import Saver, SaveRequest
from ckpt_core.tree import Flat, borrow

__all__ = ["Intake", "check_count", "check_step"]

_log = logging.getLogger("ckpt_core.save")


def check_count(number: int | None, name: str) -> int | None:
    """`number` itself, if an option may have it. Raises UsageError."""
    if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
        raise UsageError(f"{name}={number!r} must be a whole number, 1 or more", kind="option")
    return number


def check_step(step: int, last: int | None) -> int:
    """The step of a save, where the one before was of step `last`. Raises UsageError."""
    try:
        number = operator.index(step)
    except TypeError:
        number = -1
    if not 0 <= number < 1 << 62:
        raise UsageError(f"step={step!r} must be a whole number, 0 or more", kind="step", step=step)
    if last is not None and number < last:
        raise UsageError(
            f"step={number} goes backwards: this attempt has saved step {last}, or went on "
            "from it; count on from there, or call begin_attempt() to start another training",
            kind="step",
            step=number,
            last_step=last,
        )
    return number


class Intake:
    """Takes in one save at a time and hands it to the saver, on the queue's thread or on the caller's."""

    def __init__(self, queue: SaveQueue, saver: Saver, *, threads: int, staged_bytes: int | None) -> None:
        self._queue = queue
        self._saver = saver
        self._threads = threads
        self._arenas = staging.ArenaPool(staged_bytes)

    def stage(
        self,
        request: SaveRequest,
        flat: Flat,
        staged: Callable[[], object],
        lazy: LazyTensors | None = None,
    ) -> SaveHandle:
        """Copies the tensors and returns; the rest is done in the background, and so are the copies of those that
        are `lazy`. `staged` is called between.

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
        deferred = _begun(lazy, request.step)
        try:
            if lazy is None or deferred is None:
                snapshot, later = staging.copy(flat, arena)
            else:
                snapshot, later = staging.copy(flat, arena, lazy.__contains__)
                deferred.start(later)
        except MemoryError as error:
            _give_up(deferred)
            self._arenas.release(arena)
            self._queue.cancel()
            _log.warning(
                "training waits for the save of step %d: %s", request.step, error or "no memory for a copy"
            )
            self._queue.run(handle, lambda h: self._save_live(request, flat, h))
            return handle
        except BaseException as error:
            _give_up(deferred)
            self._arenas.release(arena)
            self._queue.cancel()
            if not isinstance(error, Exception):
                raise
            self._saver.fail(request, error, handle)
            return handle
        try:
            staged()
        finally:  # a hook that raises is heard, and the save is made all the same
            ready = deferred.result if deferred is not None else None
            self._queue.submit(
                handle,
                lambda h: self._saver.run(request, snapshot, h, ready),
                lambda: self._release(arena, deferred),
            )
        return handle

    def save_now(self, request: SaveRequest, flat: Flat) -> SaveHandle:
        """Makes the save before it returns, from the live tensors; raises what went wrong."""
        handle = SaveHandle(request.step)
        self._queue.run(handle, lambda h: self._save_live(request, flat, h))
        handle.result()
        return handle

    def _release(self, arena: staging.Arena, deferred: Deferred | None) -> None:
        if deferred is not None:  # of a save that was replaced, it may still be copied to
            deferred.wait()
        self._arenas.release(arena)

    def clear(self) -> None:
        """Lets go of the memory for copies."""
        self._arenas.clear()

    def _save_live(self, request: SaveRequest, flat: Flat, handle: SaveHandle) -> None:
        request = replace(request, threads=None)  # training waits: there is nobody to leave cores to
        try:
            snapshot = borrow(flat)
        except Exception as error:
            self._saver.fail(request, error, handle)
            return
        self._saver.run(request, snapshot, handle)


def _begun(lazy: LazyTensors | None, step: int) -> Deferred | None:
    if lazy is None:
        return None
    deferred = Deferred(lazy, step)
    if lazy.begin(deferred.wait):
        return deferred
    deferred.give_up()
    return None


def _give_up(deferred: Deferred | None) -> None:
    if deferred is not None:
        deferred.give_up()
