"""What all watchers of tensors share: which tensors, what to compare with, and what follows a complaint.

A watcher looks at the copy that is about to be written, on the thread that writes it: training does not wait.
What there is to see in a tensor, a subclass knows.
"""

from __future__ import annotations

import logging
import math
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, Unpack

from ckpt_core.errors import CkptError, UsageError
from ckpt_core.format.names import check_tag
from ckpt_core.hooks import BaseHook, HookContext, HookEvent, HookOptions, HookPriority
from ckpt_core.model import Attempt, Checkpoint
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.tree.selection import Selection
from ckpt_core.watch.earlier import EarlierCheckpoint, EarlierTensor
from ckpt_core.watch.pieces import Array

__all__ = ["Action", "Manager", "Sight", "TensorWatcher", "check_limit"]

_log = logging.getLogger("ckpt_core.watch")
_LONGEST = 255  # of the name of a metric
_SHOWN = 8

Action: TypeAlias = Literal["warn", "tag", "veto"]
"""What a complaint does: it is logged (`warn`); the checkpoint is tagged, too (`tag`); or there is none (`veto`)."""

_ACTIONS = ("warn", "tag", "veto")


class Manager(Protocol):
    """What a watcher needs of the manager whose hook it is."""

    workspace: Workspace

    def log(self, metrics: Mapping[str, Any], *, step: int) -> None:
        """Adds to the metric series."""

    def resolve(self, ref: str = "latest") -> Checkpoint:
        """The checkpoint that a reference names."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen in one tensor: values for the metric series by their short names, what is wrong with it, and
    what was measured, for the summary."""

    metrics: Mapping[str, float]
    complaints: tuple[str, ...] = ()
    measured: Any = None


class TensorWatcher(BaseHook):
    """Looks at chosen tensors of every state before it is written, and acts on what is wrong.

    A subclass gives `topic`, the first word of its metrics and tags, and writes `examine`; one that wants to see
    only some of the tensors that patterns choose writes `suits`.
    """

    topic: str = "watch"
    events = (HookEvent.BEFORE_SAVE, HookEvent.AFTER_SAVE)
    priority = HookPriority.HIGH

    def __init__(
        self,
        tensors: str | Sequence[str] | None,
        *,
        action: Action = "warn",
        compare: bool = True,
        **options: Unpack[HookOptions],
    ) -> None:
        super().__init__(**options)
        if action not in _ACTIONS:
            raise UsageError(f"action={action!r} must be one of {', '.join(_ACTIONS)}", kind="option")
        self.action = action
        self.compare = compare
        self._chosen = Selection(tensors)
        self._manager: Callable[[], Manager | None] | None = None
        self._attempt: str | None = None
        self._resumed: str | None = None
        self._last: Checkpoint | None = None
        self._tags: list[str] = []

    @abstractmethod
    def examine(self, path: str, values: Array, before: EarlierTensor | None) -> Sight:
        """Looks at a tensor: all of it, in C order, and the same tensor of the checkpoint before, if there is one.

        May raise CkptError where the checkpoint before cannot be read: it is then called again without.
        """

    def suits(self, path: str, values: Array) -> bool:
        """Whether a tensor that a pattern chooses is one to look at."""
        return True

    def summary(self, sights: Mapping[str, Sight]) -> Sight:
        """What is to be said of all tensors together."""
        return Sight({})

    def attach(self, owner: Any) -> None:
        self._manager = weakref.ref(owner)  # which holds its hooks
        self._attempt, self._resumed, self._last = None, None, None

    def execute(self, context: HookContext) -> bool | None:
        if context.event is HookEvent.AFTER_SAVE:
            self._follow(context)
            return None
        self._tags = []
        if context.tensors is None or context.step is None:
            raise UsageError(
                f"{self.name} looks at what is about to be written, and on {context.event.name} or as a BACKGROUND "
                "hook there is nothing: leave its events and its priority as they are",
                kind="hook",
            )
        with self._earlier(context.attempt) as earlier:
            sights = {path: self._examined(path, values, earlier) for path, values in self._selected(context)}
        total = self.summary(sights)
        metrics = {f"{self.topic}/{name}": value for name, value in total.metrics.items()}
        for path, sight in sights.items():
            metrics |= {self._metric(name, path): value for name, value in sight.metrics.items()}
        self._owner().log(metrics, step=context.step)
        complaints = [*total.complaints]
        complaints += [f"{path}: {each}" for path, sight in sights.items() for each in sight.complaints]
        return self._act(context, context.step, complaints) if complaints else None

    # -- details ----------------------------------------------------------------------------------

    def _act(self, context: HookContext, step: int, complaints: Sequence[str]) -> bool | None:
        shown = "; ".join(complaints[:_SHOWN])
        if len(complaints) > _SHOWN:
            shown += f"; and {len(complaints) - _SHOWN} more"
        if self.action == "veto":
            return context.veto(shown)
        _log.warning("%s at step %d: %s", self.name, step, shown)
        if self.action == "tag":
            self._tags = [check_tag(f"{self.topic}-step-{step}")]
        return None

    def _follow(self, context: HookContext) -> None:
        """The save was made: it is what the next one is compared with, and is tagged if it was complained of."""
        self._last = context.checkpoint
        tags, self._tags = self._tags, []
        if context.checkpoint is not None:
            for tag in tags:
                self._owner().workspace.tag(context.checkpoint, tag)

    def _selected(self, context: HookContext) -> Iterator[tuple[str, Array]]:
        """The chosen tensors. Raises UsageError where a pattern chooses none: most likely a slip."""
        assert context.tensors is not None
        found = False
        for path in context.tensors:
            if path in self._chosen and self.suits(path, values := context.tensors[path]):
                found = True
                yield path, values
        if not found and not self._chosen.everything:
            there = ", ".join(sorted(context.tensors)[:_SHOWN])
            raise UsageError(
                f"{self.name} finds no tensor to look at under {', '.join(self._chosen.patterns)}; the state has "
                f"{there or 'none'}",
                kind="tensors",
            )

    def _examined(self, path: str, values: Array, earlier: Mapping[str, EarlierTensor]) -> Sight:
        before = earlier.get(path)
        try:
            return self.examine(path, values, before)
        except CkptError as error:
            if before is None:
                raise
            _log.warning("%s cannot compare %s with the checkpoint before: %s", self.name, path, error)
            return self.examine(path, values, None)

    @contextmanager
    def _earlier(self, attempt: Attempt | None) -> Iterator[Mapping[str, EarlierTensor]]:
        """The checkpoint that this attempt saved last, or goes on from; nothing where there is none to be had."""
        if attempt is not None and attempt.id != self._attempt:
            self._attempt, self._last, self._resumed = attempt.id, None, attempt.resumed_from
        opened = self._opened() if self.compare else None
        if opened is None:
            yield {}
            return
        try:
            yield opened
        finally:
            opened.close()

    def _opened(self) -> EarlierCheckpoint | None:
        if self._last is None and self._resumed is None:
            return None
        manager = self._owner()
        repository = manager.workspace.repository
        try:
            last = self._last if self._last is not None else manager.resolve(self._resumed or "")
            return EarlierCheckpoint(repository.reader(repository.read(last.key).manifest, "lazy"))
        except CkptError as error:
            _log.warning(
                "%s compares with nothing: the checkpoint before cannot be read: %s", self.name, error
            )
            return None

    def _owner(self) -> Manager:
        manager = self._manager() if self._manager is not None else None
        if manager is None:
            raise UsageError(
                f"{self.name} belongs to no manager: give it to one, as CheckpointManager(..., hooks=[...])",
                kind="hook",
            )
        return manager

    def _metric(self, name: str, path: str) -> str:
        head = f"{self.topic}/{name}/"
        return head + path[-(_LONGEST - len(head)) :]  # the end of a path tells more than its beginning


def check_limit(name: str, value: float | None, *, most: float = math.inf) -> None:
    """Raises UsageError for a limit that is no number from 0 to `most`; None is no limit."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        bound = "0 or more" if most == math.inf else f"from 0 to {most:g}"
        raise UsageError(f"{name}={value!r} must be a number, {bound}, or None", kind="option")
