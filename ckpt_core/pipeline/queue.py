"""One background thread that makes saves in the order in which they were asked for, never without bound."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Literal

from ckpt_core import clock
from ckpt_core.errors import SaveNotDoneError, UsageError
from ckpt_core.model import Checkpoint

__all__ = ["OnBusy", "SaveHandle", "SaveQueue"]

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


class SaveQueue:
    """Runs jobs one after the other. `reserve` bounds them before anything is staged."""

    def __init__(self, max_pending: int, on_busy: OnBusy) -> None:
        if max_pending < 1:
            raise UsageError(f"max_pending={max_pending} must be at least 1", kind="option")
        if on_busy not in ("wait", "skip", "replace"):
            raise UsageError(f"on_busy={on_busy!r} must be 'wait', 'skip' or 'replace'", kind="option")
        self._max_pending = max_pending
        self._on_busy = on_busy
        self._changed = threading.Condition()
        self._jobs: deque[tuple[SaveHandle, Job, Callable[[], None]]] = deque()
        self._reserved = 0
        self._running: SaveHandle | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def reserve(self, step: int) -> None:
        """Takes a place for one save, to be filled by `submit` or given back by `cancel`.

        Raises SaveNotDoneError (kind `skipped`) where the policy says so, `closed` after `close`.
        """
        with self._changed:
            while self._pending() >= self._max_pending and not self._closed:
                if self._on_busy == "skip":
                    raise SaveNotDoneError(
                        f"the save of step {step} was skipped: {self._pending()} saves are still being written",
                        step=step,
                    )
                if self._on_busy == "replace" and self._jobs:
                    handle, _, release = self._jobs.popleft()
                    release()
                    handle.fail(
                        SaveNotDoneError(
                            f"the save of step {handle.step} was replaced by that of step {step}",
                            kind="replaced",
                            step=handle.step,
                        )
                    )
                    continue
                self._changed.wait()
            if self._closed:
                raise SaveNotDoneError("the manager is closed: open a new one to save", kind="closed", step=step)
            self._reserved += 1

    def cancel(self) -> None:
        """Gives a reserved place back."""
        with self._changed:
            self._reserved -= 1
            self._changed.notify_all()

    def submit(self, handle: SaveHandle, job: Job, release: Callable[[], None]) -> None:
        """Fills a reserved place. `release` is called when what was staged is no longer needed."""
        with self._changed:
            self._reserved -= 1
            self._jobs.append((handle, job, release))
            if self._thread is None:
                # Daemonic, so that a stuck disk cannot keep the interpreter alive; `close` waits for it.
                self._thread = threading.Thread(target=self._work, name="ckpt-save", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until nothing is pending; False after `timeout` seconds. Returns at once on the save thread."""
        if threading.current_thread() is self._thread:
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
        """Waits for what is pending and ends the thread. Further saves are refused."""
        self.wait()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join()

    def _pending(self) -> int:
        return self._reserved + len(self._jobs) + (self._running is not None)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                handle, job, release = self._jobs.popleft()
                self._running = handle
            try:
                job(handle)
            except BaseException as error:
                if not handle.done():
                    handle.fail(error)
            finally:
                release()
                with self._changed:
                    self._running = None
                    self._changed.notify_all()
