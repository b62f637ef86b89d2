"""Copies that are made while training already goes on: of tensors that will not change before somebody waits for it.

Who knows that they will not is the adapter. It says so tensor by tensor, waits before they may change, and looks
afterwards whether they did.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ckpt_core.errors import SaveNotDoneError

__all__ = ["Deferred", "LazyTensors"]

_log = logging.getLogger("ckpt_core.save")


class LazyTensors(Protocol):
    """What an adapter knows of the tensors of a state that training will leave alone for a while."""

    def begin(self, wait: Callable[[], None]) -> bool:
        """A save begins: from now on, `wait` is to be called before any of the tensors changes. It may be called
        often. False: not this time, everything is to be copied at once."""

    def __contains__(self, value: Any) -> bool:
        """Whether a tensor of the state is one of those."""

    def changed(self) -> str | None:
        """Asked when all is copied, on another thread: why the copy cannot be trusted, or None."""


class Deferred:
    """The copies of one save. They are made by a thread of their own, from `start` on."""

    def __init__(self, lazy: LazyTensors, step: int) -> None:
        self._lazy = lazy
        self._step = step
        self._copies: Sequence[Callable[[], None]] = ()
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(self, copies: Sequence[Callable[[], None]]) -> None:
        """Begins to copy."""
        self._copies = copies
        # Not daemonic: it ends in a moment, and what it reads must not be taken away from under it.
        self._thread = threading.Thread(target=self._work, name="ckpt-stage")
        try:
            self._thread.start()
        except RuntimeError:  # no threads left, or the interpreter is shutting down
            self._work()

    def give_up(self) -> None:
        """There will be no copies: nobody is to wait for them."""
        self._done.set()

    def wait(self) -> None:
        """Returns when all is copied. Raises nothing."""
        self._done.wait()

    def result(self) -> None:
        """Returns when all is copied; raises SaveNotDoneError (kind `changed`) where the copy is of no use."""
        self._done.wait()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            for copy in self._copies:
                copy()
            reason = self._lazy.changed()
            if reason is not None:
                self._error = SaveNotDoneError(
                    f"the save of step {self._step} was given up: {reason}", kind="changed", step=self._step
                )
        except BaseException as error:
            self._error = error
        finally:
            self._copies = ()
            self._done.set()
