"""Signals that announce the end of a job: noted at once, acted upon at the next safe point, then passed on.

Saving is the session's work; here is only what happens to the signals and to who handled them before.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

__all__ = ["PREEMPTION_SIGNALS", "PreemptionSignals"]

_log = logging.getLogger("ckpt_core.session")

PREEMPTION_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
"""What schedulers send before they kill: SIGTERM everywhere, SIGUSR1 by SLURM's habit."""


class PreemptionSignals:
    """Notes `signals` from `install` to `uninstall`, and hands them to the earlier handlers when told to.

    A second signal does not wait: it goes to the earlier handler at once. Python allows handlers in the
    main thread only; installed from another thread, this does nothing and says so.
    """

    def __init__(self, signals: Iterable[signal.Signals] = PREEMPTION_SIGNALS) -> None:
        self._signals = tuple(signals)
        self._earlier: dict[int, Any] = {}
        self._process = 0
        self.received: signal.Signals | None = None

    def install(self) -> None:
        """Handle the signals from now on. One whose handler is not Python's is left alone."""
        if not self._signals:
            return
        if threading.current_thread() is not threading.main_thread():
            _log.info("not in the main thread: preemption signals are not handled")
            return
        self._process = os.getpid()
        for number in self._signals:
            earlier = signal.getsignal(number)
            if number not in self._earlier and earlier is not None:
                self._earlier[number] = earlier
                signal.signal(number, self._note)

    def uninstall(self) -> None:
        """Give the signals back, but for those that somebody else has taken since."""
        for number, earlier in self._earlier.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, earlier)
        self._earlier.clear()

    def pass_on(self) -> None:
        """Let the earlier handler of the signal received have it, as if it came now.

        Returns if that one does; then the next signal is awaited. The default action ends the process
        with the status that the signal gives. A signal that was ignored before is ignored again.
        """
        number, self.received = self.received, None
        if number is not None:
            self._deliver(number, sys._getframe())

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a child that was forked with our handler: none of our business
            self._deliver(number, frame)
        elif self.received is None:
            self.received = signal.Signals(number)
            _log.warning("%s received: saving at the next safe point", self.received.name)
        else:
            _log.warning("%s received again: not waiting for a safe point", signal.Signals(number).name)
            self.received = None
            self._deliver(number, frame)

    def _deliver(self, number: int, frame: FrameType | None) -> None:
        earlier = self._earlier.get(number, signal.SIG_DFL)
        if callable(earlier):
            earlier(number, frame)
        elif earlier == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
