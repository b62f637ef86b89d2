"""Calling one hook, plain or asynchronous, within a time limit. Knows threads and event loops, no policy.

A plain hook without a limit runs right on the calling thread. A limit needs a helper thread, since a plain
function cannot be stopped, only left behind; an asynchronous one is cancelled at its limit.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["Overrun", "call"]

_log = logging.getLogger("ckpt_core.hooks")

CANCEL_GRACE = 1.0
"""Seconds that a cancelled asynchronous hook has for its clean-up before it is left behind as well."""


class Overrun(Exception):
    """The call took longer than its limit. `thread` still runs it, or is None if it has ended."""

    def __init__(self, thread: threading.Thread | None = None) -> None:
        super().__init__("it ran past its time limit")
        self.thread = thread


def call(function: Callable[[], Any], timeout: float | None, name: str) -> Any:
    """What `function()` returns, awaited where it is awaitable.

    Raises whatever it raises, also what it raises on a helper thread, and Overrun after `timeout` seconds.
    """
    if timeout is None:
        return _settle(function(), None)
    return _HelperCall(function, timeout, name).result()


class _HelperCall:
    """One call on a daemon thread of its own, which the caller waits for until the limit."""

    def __init__(self, function: Callable[[], Any], timeout: float | None, name: str) -> None:
        self._function = function
        self._timeout = timeout
        self._name = name
        self._done = threading.Event()
        self._asynchronous = False
        self._abandoned = False
        self._answer: Any = None
        self._error: BaseException | None = None
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name=f"ckpt-hook {name}", daemon=True
        )

    def result(self) -> Any:
        self._thread.start()
        if not self._done.wait(self._timeout) and not (self._asynchronous and self._done.wait(CANCEL_GRACE)):
            self._abandoned = True
            raise Overrun(self._thread)
        if self._error is not None:
            raise self._error
        return self._answer

    def _run(self) -> None:
        try:
            answer = self._function()
            self._asynchronous = _is_awaitable(answer)
            self._answer = _settle(answer, self._timeout)
        except BaseException as error:  # also SystemExit: the caller's thread raises it anew
            self._error = error
        self._done.set()
        if self._abandoned:
            _log.info(
                "hook %s ended after its time limit, when nobody waited for it any more (%s)",
                self._name,
                "done" if self._error is None else repr(self._error),
            )


def _is_awaitable(answer: object) -> bool:
    return answer is not None and isinstance(answer, Awaitable)


def _settle(answer: Any, limit: float | None) -> Any:
    if not _is_awaitable(answer):
        return answer
    import asyncio  # here, because it is slow to import and most hooks are plain

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _await_in_private_loop(answer, limit)
    # A loop runs on this thread already (a notebook, an asynchronous hook that fires): no second one can.
    return _HelperCall(lambda: _await_in_private_loop(answer, limit), None, "beside a loop").result()


def _await_in_private_loop(awaitable: Awaitable[Any], limit: float | None) -> Any:
    import asyncio

    async def main() -> Any:
        answer = None
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                answer = await awaitable
        except TimeoutError:
            if not scope.expired():  # the hook's own
                raise
        if scope.expired():  # also when the hook caught its cancellation and answered late
            raise Overrun
        return answer

    try:
        # With a factory the runner leaves the thread's current event loop, which may be the user's, alone.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            return runner.run(main())
    except asyncio.CancelledError as error:  # no Exception, and yet nothing but a failure of this hook
        raise RuntimeError("the hook was cancelled from within") from error
