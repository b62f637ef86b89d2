"""What a hook is: an object with `execute`, or a function under `@hook`. Running it is the manager's."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias, TypedDict

from ckpt_core.errors import UsageError
from ckpt_core.hooks.context import HookContext
from ckpt_core.hooks.events import HookEvent, HookPriority

__all__ = ["Answer", "BaseHook", "Condition", "FunctionHook", "HookOptions", "OnError", "as_events", "hook"]

Answer: TypeAlias = bool | Awaitable[bool | None] | None
Condition: TypeAlias = Callable[[HookContext], object]
OnError: TypeAlias = Literal["isolate", "raise"]


class HookOptions(TypedDict, total=False):
    """What the constructor of every hook takes, for one that has others as well:
    `def __init__(self, mine: int, **options: Unpack[HookOptions])`."""

    name: str | None
    events: HookEvent | Iterable[HookEvent] | None
    priority: HookPriority | None
    condition: Condition | None
    timeout: float | None
    on_error: OnError | None
    max_failures: int | None
    retry_after: float | None


class BaseHook(ABC):
    """A reaction to events. Subclass it, set what differs as class attributes, write `execute`.

    Every attribute may also be given to the constructor, for one instance. A subclass that has its own
    constructor need not call this one. In a class, write `condition` as a method.
    They are read once, when the hook is registered.
    """

    name: str = ""
    """How it is called in logs, statistics and reasons. The class's name if left out."""

    events: Iterable[HookEvent] = ()
    """What it reacts to."""

    priority: HookPriority = HookPriority.NORMAL
    """When it runs among the hooks of one event."""

    condition: Condition | None = None
    """Asked on the calling thread before each call; a false answer skips the call."""

    timeout: float | None = None
    """Seconds that one call may take before the caller goes on without it."""

    on_error: OnError = "isolate"
    """`"isolate"`: a failure is logged and counted. `"raise"`: it also reaches the caller as HookError."""

    max_failures: int | None = 5
    """After so many failures in a row it is left out for a while. None, and `on_error="raise"`: never."""

    retry_after: float = 60.0
    """Seconds for which it is left out; twice as long each time that it fails again, up to an hour."""

    source: str = "code"
    """Who has named it: `"code"`, `"entry point"` or `"built in"` (by `make_hook`), `"ckpt.toml"`."""

    def __init__(
        self,
        *,
        name: str | None = None,
        events: HookEvent | Iterable[HookEvent] | None = None,
        priority: HookPriority | None = None,
        condition: Condition | None = None,
        timeout: float | None = None,
        on_error: OnError | None = None,
        max_failures: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "name": name,
            "events": None if events is None else as_events(events),
            "priority": priority,
            "condition": condition,
            "timeout": timeout,
            "on_error": on_error,
            "max_failures": max_failures,
            "retry_after": retry_after,
        }
        for attribute, value in given.items():
            if value is not None:
                setattr(self, attribute, value)

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def attach(self, owner: Any) -> None:
        """Told whose hook it is: a CheckpointManager, when it is made or the hook is registered with it.

        For hooks that look at the store or at other checkpoints. What it raises is an error of the registration.
        """
        return

    def detach(self) -> None:
        """Told that whose hook it is has been closed, or could not be made after all, or that the hook was
        unregistered: what it holds open can go.

        Within its `timeout`, if it has one. What it raises is logged.
        """
        return

    def state_dict(self) -> Mapping[str, Any]:
        """What must survive a resume, as plain values: saved with each checkpoint of a session. Nothing by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, in the process that resumes: before TRAIN_BEGIN."""
        return

    @abstractmethod
    def execute(self, context: HookContext) -> Answer:
        """React; plain or `async def`. False (or `context.veto(why)`) on a `BEFORE_*` event refuses it.

        Any other answer, and False on any other event, means nothing. May raise anything: see `on_error`.
        Called on the thread that fires the event, on a helper thread if there is a time limit, on the
        manager's worker thread if the priority is BACKGROUND; by two threads at once if two fire at once.
        """


class FunctionHook(BaseHook):
    """A function as a hook. It can still be called as the function it was."""

    def __init__(
        self,
        function: Callable[[HookContext], Answer],
        *,
        name: str | None = None,
        events: HookEvent | Iterable[HookEvent] | None = None,
        priority: HookPriority | None = None,
        condition: Condition | None = None,
        timeout: float | None = None,
        on_error: OnError | None = None,
        max_failures: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(
            name=name or getattr(function, "__name__", type(function).__name__),
            events=events,
            priority=priority,
            condition=condition,
            timeout=timeout,
            on_error=on_error,
            max_failures=max_failures,
            retry_after=retry_after,
        )
        self.function = function
        functools.update_wrapper(self, function, updated=())

    def execute(self, context: HookContext) -> Answer:
        return self.function(context)

    def __call__(self, context: HookContext) -> Answer:
        return self.function(context)


def hook(
    *events: HookEvent,
    priority: HookPriority = HookPriority.NORMAL,
    condition: Condition | None = None,
    timeout: float | None = None,
    on_error: OnError = "isolate",
    max_failures: int | None = None,
    retry_after: float | None = None,
    name: str | None = None,
) -> Callable[[Callable[[HookContext], Answer]], FunctionHook]:
    """Make a function a hook on `events`: `@hook(HookEvent.AFTER_SAVE, priority=HookPriority.LOW)`.

    It reacts to nothing until it is registered. For methods, subclass BaseHook instead.
    Raises UsageError without an event, or for a word that is none.
    """
    wanted = as_events(events)

    def decorate(function: Callable[[HookContext], Answer]) -> FunctionHook:
        return FunctionHook(
            function,
            name=name,
            events=wanted,
            priority=priority,
            condition=condition,
            timeout=timeout,
            on_error=on_error,
            max_failures=max_failures,
            retry_after=retry_after,
        )

    return decorate


def as_events(events: HookEvent | str | Iterable[HookEvent | str]) -> tuple[HookEvent, ...]:
    """The events named, each once. Raises UsageError for none at all and for a word that is no event."""
    named = (events,) if isinstance(events, str) else tuple(events)
    if not named:
        raise UsageError(
            "a hook needs an event to react to; name one, as HookEvent.AFTER_SAVE", kind="events"
        )
    try:
        return tuple(dict.fromkeys(HookEvent(event) for event in named))
    except ValueError as error:
        known = ", ".join(event.name for event in HookEvent)
        raise UsageError(f"{error}; the events of HookEvent are {known}", kind="events") from error
