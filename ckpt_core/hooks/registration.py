"""One registered hook: its attributes as they were when it was registered, checked, and its counters."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from typing import Literal, get_args

from ckpt_core.errors import UsageError
from ckpt_core.hooks.base import BaseHook, FunctionHook, as_events
from ckpt_core.hooks.circuit import Circuit
from ckpt_core.hooks.events import HookEvent, HookPriority
from ckpt_core.hooks.results import HookStatistics

__all__ = ["Registration"]

Counter = Literal["calls", "failures", "timeouts", "vetoes", "dropped", "skipped"]


class Registration:
    """A hook as the manager runs it. Raises UsageError if an attribute of the hook cannot mean anything."""

    def __init__(
        self, hook: BaseHook, name: str, events: HookEvent | Iterable[HookEvent] | None, number: int
    ) -> None:
        self.hook = hook
        self.name = name
        self.number = number
        self.events = as_events(hook.events if events is None else events)
        self.execute = hook.execute
        self.condition = hook.condition
        self.timeout = hook.timeout
        self.raises = _raises(hook, name)
        self.priority = _priority(hook, name)
        if self.condition is not None and not callable(self.condition):
            raise _unusable(name, "its condition is not callable; give a function of the context")
        if self.timeout is not None and not _is_time(self.timeout):
            raise _unusable(name, f"its timeout is {self.timeout!r}; give seconds above 0, or None")
        if self.raises and self.background:
            raise _unusable(
                name,
                'BACKGROUND and on_error="raise" exclude each other, as there is no caller left to raise to; '
                "change one of them",
            )
        self.circuit = _circuit(hook, name, raises=self.raises)
        # Threads that overran and still run: while there is one the hook is not called again, or a hook
        # that hangs at every step would leave a thread behind at every step.
        self._abandoned: list[threading.Thread] = []
        self._counts: dict[Counter, int] = dict.fromkeys(get_args(Counter), 0)
        self._seconds = 0.0
        self.last_error: str | None = None
        # Re-entrant, as a signal handler may fire events in the midst of a count.
        self._lock = threading.RLock()

    @property
    def background(self) -> bool:
        return self.priority is HookPriority.BACKGROUND

    @property
    def order(self) -> tuple[int, int]:
        return (self.priority, self.number)

    def is_of(self, hook: BaseHook | Callable[..., object] | str) -> bool:
        """Whether this is the registration of that hook, of that plain function, or under that name."""
        if isinstance(hook, str):
            return self.name == hook
        return self.hook is hook or (isinstance(self.hook, FunctionHook) and self.hook.function is hook)

    def count(self, counter: Counter) -> int:
        """Add one; returns how many there were before."""
        with self._lock:
            before = self._counts[counter]
            self._counts[counter] = before + 1
            return before

    def spend(self, seconds: float) -> None:
        with self._lock:
            self._seconds += seconds

    def abandon(self, thread: threading.Thread) -> None:
        with self._lock:
            self._abandoned.append(thread)

    def is_stuck(self) -> bool:
        """Whether an earlier call that overran is still running."""
        if not self._abandoned:
            return False
        with self._lock:
            self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
            return bool(self._abandoned)

    def statistics(self) -> HookStatistics:
        with self._lock:
            return HookStatistics(
                self.name,
                **self._counts,
                seconds=self._seconds,
                last_error=self.last_error,
                circuit=self.circuit.state,
            )


def _priority(hook: BaseHook, name: str) -> HookPriority:
    try:
        return HookPriority(hook.priority)
    except ValueError as error:
        known = ", ".join(priority.name for priority in HookPriority)
        raise _unusable(name, f"its priority is {hook.priority!r}; choose one of {known}") from error


def _raises(hook: BaseHook, name: str) -> bool:
    if hook.on_error not in ("isolate", "raise"):
        raise _unusable(name, f'its on_error is {hook.on_error!r}; choose "isolate" or "raise"')
    return hook.on_error == "raise"


def _circuit(hook: BaseHook, name: str, *, raises: bool) -> Circuit:
    most, seconds = hook.max_failures, hook.retry_after
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise _unusable(name, f"its max_failures is {most!r}; give a whole number, 1 or more, or None")
    if not _is_time(seconds):
        raise _unusable(name, f"its retry_after is {seconds!r}; give seconds above 0")
    # A failure that the caller is to hear of is not kept from it.
    return Circuit(None if raises else most, float(seconds))


def _is_time(seconds: object) -> bool:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return False
    return math.isfinite(seconds) and seconds > 0


def _unusable(name: str, why: str) -> UsageError:
    return UsageError(f"hook {name!r} cannot be registered: {why}", kind="hook", hook=name)
