"""Saves one after the other, in the order in which they were asked for, and never without bound.

Knows nothing of what a save does. Its thread is there only while there is work.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Literal, NamedTuple

from ckpt_core import clock
from ckpt_core.config import yield_to_others
from ckpt_core.errors import SaveNotDoneError, UsageError
from ckpt_core.model import Checkpoint

__all__ = ["OnBusy", "SaveHandle", "SaveQueue"]

_log = logging.getLogger("ckpt_core.save")

OnBusy = Literal["wait", "skip", "replace"]
"""What a save does when `max_pending` saves are not yet durable: wait for one; give up (`skip`); or take
the place of those not begun (`replace`), waiting only if none is left to replace."""

Job = Callable[["SaveHandle"], None]


class SaveHandle:
    """The promise of a save. Its outcome is a durable checkpoint or the error that prevented it."""

    def __init__(self, step: int) -> None:
        self.step = step
        self._future: Future[Checkpoint] = Future()

    def result(self, timeout: float | None = None) -> Checkpoint:
        """Waits until the checkpoint is durable and returns it; raises what went wrong.

        Raises SaveNotDoneError where the save was vetoed, skipped or replaced, and TimeoutError after
        `timeout` seconds (the save itself goes on).
        """
        return self._future.result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits likewise; returns what went wrong, or None."""
        return self._future.exception(timeout)

    def done(self) -> bool:
        """Whether the outcome is known."""
        return self._future.done()

    def add_done_callback(self, callback: Callable[[SaveHandle], object]) -> None:
        """Calls `callback(handle)` once the outcome is known, on the thread that learns it."""
        self._future.add_done_callback(lambda _: callback(self))

    def succeed(self, checkpoint: Checkpoint) -> None:
        """For the engine: the checkpoint is durable."""
        self._future.set_result(checkpoint)

    def fail(self, error: BaseException) -> None:
        """For the engine: there is no checkpoint, for this reason."""
        self._future.set_exception(error)

    def __repr__(self) -> str:
        if not self.done():
            return f"<SaveHandle step={self.step} pending>"
        error = self.exception()
        return f"<SaveHandle step={self.step} {'done' if error is None else f'failed: {error}'}>"


class _Entry(NamedTuple):
    """A save that waits for its turn. `release` is called when what was staged is no longer needed."""

    handle: SaveHandle
    job: Job
    release: Callable[[], None]


class SaveQueue:
    """Runs jobs one after the other. `reserve` bounds them before anything is staged.

    Jobs settle their handles and raise nothing. Thread-safe.
    """

    def __init__(self, max_pending: int, on_busy: OnBusy) -> None:
        if isinstance(max_pending, bool) or not isinstance(max_pending, int) or max_pending < 1:
            raise UsageError(f"max_pending={max_pending!r} must be a whole number, 1 or more", kind="option")
        if on_busy not in ("wait", "skip", "replace"):
            raise UsageError(f"on_busy={on_busy!r} must be 'wait', 'skip' or 'replace'", kind="option")
        self._max_pending = max_pending
        self._on_busy = on_busy
        self._changed = threading.Condition()
        self._entries: deque[_Entry] = deque()
        self._reserved = 0
        self._thread: threading.Thread | None = None
        self._busy: int | None = None  # the identity of the thread that is making a save
        self._closed = False

    @property
    def inside(self) -> bool:
        """Whether the caller is a part of a save itself: a hook, which must not wait for its own end."""
        return self._busy == threading.get_ident()

    def reserve(self, step: int) -> None:
        """Takes a place for one save, to be filled by `submit` or given back by `cancel`.

        Raises SaveNotDoneError (kind `skipped`) where the policy says so, `closed` after `close`; UsageError
        in a hook of a save.
        """
        self._refuse_inside(step)
        replaced: list[_Entry] = []
        try:
            with self._changed:
                while self._pending() >= self._max_pending and not self._closed:
                    if self._on_busy == "skip":
                        raise SaveNotDoneError(
                            f"the save of step {step} was skipped: {self._pending()} are still being written",
                            step=step,
                        )
                    if self._on_busy == "replace" and self._entries:
                        replaced.append(self._entries.popleft())
                        continue
                    self._changed.wait()
                self._refuse_closed(step)
                self._reserved += 1
        finally:  # not under the lock: whoever waits for a handle may use the queue
            for entry in replaced:
                _give_up(entry, step)

    def cancel(self) -> None:
        """Gives a reserved place back."""
        with self._changed:
            self._reserved -= 1
            self._changed.notify_all()

    def submit(self, handle: SaveHandle, job: Job, release: Callable[[], None]) -> None:
        """Fills a reserved place. `release` is called when what was staged is no longer needed."""
        with self._changed:
            self._reserved -= 1
            self._entries.append(_Entry(handle, job, release))
            if self._thread is not None:
                return
            # Daemonic, so that a stuck disk cannot keep the interpreter alive; `close` waits for it.
            self._thread = thread = threading.Thread(target=self._work_behind, name="ckpt-save", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no threads left, or the interpreter is shutting down
            _log.warning(
                "the save of step %d is made at once, on the caller's thread: %s", handle.step, error
            )
            self._work()

    def run(self, handle: SaveHandle, job: Job) -> None:
        """Runs a job on the calling thread, when all that are pending have ended; nothing is skipped for it.

        Raises SaveNotDoneError (`closed`); UsageError in a hook of a save.
        """
        self._refuse_inside(handle.step)
        with self._changed:
            while self._pending():
                self._changed.wait()
            self._refuse_closed(handle.step)
            self._busy = threading.get_ident()
        try:
            job(handle)
        finally:
            with self._changed:
                self._busy = None
                self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until nothing is pending; False after `timeout` seconds, and at once in a hook of a save."""
        if self.inside:
            return False
        deadline = None if timeout is None else clock.monotonic() + timeout
        with self._changed:
            while self._pending():
                left = None if deadline is None else deadline - clock.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def close(self) -> None:
        """Refuses further saves and waits for those that are pending. May be repeated."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.wait()

    @property
    def pending(self) -> int:
        """How many saves are not durable yet."""
        with self._changed:
            return self._pending()

    def _pending(self) -> int:
        return self._reserved + len(self._entries) + (self._busy is not None)

    def _refuse_inside(self, step: int) -> None:
        if self.inside:
            raise UsageError(
                f"the save of step {step} was asked for by a hook of another save, which would wait for its "
                "own end: call context.request_save() in a hook of a training event instead",
                kind="nested",
                step=step,
            )

    def _refuse_closed(self, step: int) -> None:
        if self._closed:
            raise SaveNotDoneError(
                f"the save of step {step} was not made: the manager is closed; open a new one",
                kind="closed",
                step=step,
            )

    def _work_behind(self) -> None:
        yield_to_others()
        self._work()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._entries:
                    self._thread = None
                    return
                entry = self._entries.popleft()
                self._busy = threading.get_ident()
            try:
                entry.job(entry.handle)
            except BaseException as error:
                # A hook that ends the process (SystemExit) ends nothing from here.
                _log.exception("the save of step %d ended with an unexpected error", entry.handle.step)
                if not entry.handle.done():
                    entry.handle.fail(error)
            finally:
                entry.release()
                del entry  # what it refers to need not live until the next one comes
                with self._changed:
                    self._busy = None
                    self._changed.notify_all()


def _give_up(entry: _Entry, step: int) -> None:
    entry.release()
    error = SaveNotDoneError(
        f"the save of step {entry.handle.step} was replaced by that of step {step}",
        kind="replaced",
        step=entry.handle.step,
    )
    _log.warning("%s", error)
    entry.handle.fail(error)
