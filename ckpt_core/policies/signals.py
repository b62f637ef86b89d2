"""A save policy that goes by a signal, and what notes signals while training runs."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ckpt_core.errors import UsageError
from ckpt_core.policies.save import Progress, _Combinable
from ckpt_core.preemption import PreemptionSignals

__all__ = ["OnSignal", "SignalNotes"]

_log = logging.getLogger("ckpt_core.hooks")
_NEVER = ("SIGKILL", "SIGSTOP")


@dataclass(frozen=True, slots=True)
class OnSignal(_Combinable):
    """When the process is sent a signal, as by `kill -USR2`; training goes on. `name`: as `"SIGUSR2"`.

    The signals that announce the end (SIGTERM and SIGUSR1, see `signals=` of the adapters) save in any case, and have
    the earlier handler go on: one of them named here stays what it is, and the log says so.
    """

    name: str = "SIGUSR2"

    def __post_init__(self) -> None:
        if self.name not in signal.Signals.__members__ or self.name in _NEVER:
            raise UsageError(
                f'OnSignal.name is {self.name!r}; give the name of a signal that can be handled, as "SIGUSR2"',
                argument="OnSignal.name",
            )

    @property
    def signals(self) -> tuple[str, ...]:
        return (self.name,)

    def wants(self, progress: Progress) -> str | None:
        return f"{self.name} received" if self.name in progress.signals else None


class SignalNotes:
    """Notes signals from `install` to `uninstall`; nobody else hears of them.

    Python allows handlers in the main thread only; installed from another one, this does nothing and says so.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._numbers = [signal.Signals[name] for name in names]
        self._earlier: dict[signal.Signals, Any] = {}
        self._received: list[str] = []

    def install(self) -> None:
        """Notes the signals from now on. May be repeated."""
        if not self._numbers or self._earlier:
            return
        if threading.current_thread() is not threading.main_thread():
            _log.warning(
                "not in the main thread: no save on %s", ", ".join(each.name for each in self._numbers)
            )
            return
        for number in self._numbers:
            earlier = signal.getsignal(number)
            if isinstance(getattr(earlier, "__self__", None), PreemptionSignals):
                _log.warning(
                    "%s announces the end: it saves in any case, and is not taken for another save; name another "
                    "signal, or give the adapter signals= without it",
                    number.name,
                )
            elif earlier is not None:  # or else it is not Python's to give back
                self._earlier[number] = earlier
                signal.signal(number, self._note)

    def uninstall(self) -> None:
        """Gives the signals back, but for those that somebody else has taken since."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, earlier in self._earlier.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, earlier)
        self._earlier.clear()

    def take(self) -> tuple[str, ...]:
        """What was received since it was asked last."""
        received, self._received = self._received, []
        return tuple(received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received.append(signal.Signals(number).name)
