"""What all links share: they run where nobody waits for them, end at a time limit, and want a library.

A link reacts to events by telling another system of them. What it tells, and to whom, is in a module of its own.
"""

from __future__ import annotations

import importlib
import threading
import weakref
from collections.abc import Callable
from typing import Any

from ckpt_core import CheckpointManager, HookContext, HookPriority, MissingExtraError, UsageError
from ckpt_core.hooks import BaseHook

__all__ = ["Link", "Saves", "require"]


class Link(BaseHook):
    """A hook that tells another system of events. In the background, in their order: neither training nor a save
    waits for it. A call that has not ended after `timeout` seconds is left behind, and until it ends, events are
    dropped and counted."""

    priority = HookPriority.BACKGROUND
    timeout = 30.0

    _owner: Callable[[], CheckpointManager | None] | None = None

    def attach(self, owner: Any) -> None:
        self._owner = weakref.ref(owner)  # which holds its hooks

    @property
    def manager(self) -> CheckpointManager:
        """The manager whose hook it is. Raises UsageError where it has none."""
        owner = self._owner() if self._owner is not None else None
        if owner is None:
            raise UsageError(
                f"{self.name} belongs to no manager: give it to one, as CheckpointManager(..., hooks=[...])",
                kind="hook",
            )
        return owner


class Saves:
    """Which save is being made, by the events: BEFORE_SAVE and what comes of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun: HookContext | None = None

    def begin(self, context: HookContext) -> None:
        """A save begins."""
        with self._lock:
            self._begun = context

    def end(self, context: HookContext) -> HookContext | None:
        """Something came of it; its beginning, or None where that was not seen."""
        with self._lock:
            begun, self._begun = self._begun, None
        return begun if begun is not None and begun.step == context.step else None

    @staticmethod
    def between(begun: HookContext, ended: HookContext) -> float:
        """Seconds; never less than 0, whatever the clock has done."""
        return max((ended.at - begun.at).total_seconds(), 0.0)


def require(module: str, extra: str) -> Any:
    """A module of another library. Raises MissingExtraError, which names the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module.partition('.')[0]} is not installed: pip install 'ckpt-core[{extra}]'", extra=extra
        ) from error
