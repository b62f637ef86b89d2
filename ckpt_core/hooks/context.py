"""What a hook is told, and what it may say back: ask for a save, ask that one be kept, refuse what is about to happen.

The facts are frozen. The live state of the training run is never among them: hooks see the copy that is saved.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from ckpt_core import clock
from ckpt_core.errors import UsageError
from ckpt_core.hooks.events import HookEvent

if TYPE_CHECKING:
    from ckpt_core.model import Attempt, Checkpoint

__all__ = ["HookContext"]


class _Answers:
    """What hooks have said back through one context."""

    __slots__ = ("background", "keeps", "requests", "veto")

    def __init__(
        self, requests: list[str], keeps: list[tuple[int, str, str]], *, background: bool = False
    ) -> None:
        self.requests = requests
        self.keeps = keeps
        self.veto: str | None = None
        self.background = background


@dataclass(frozen=True, slots=True)
class HookContext:
    """One event and the facts around it; a fact that does not apply is None.

    `epoch` counts from 0. `reason` says why the event happened (what asked for the save, which signal
    preempted). `error` is the exception of a `*_FAILED` event. `data` holds further facts of the event.
    `at` is when it happened, which for a BACKGROUND hook is not now.
    `tensors`, on BEFORE_SAVE: what is about to be written, by path, as numpy arrays that cannot be written to.
    They are good until the call returns: copy what is to be kept. `read_loss` gives the loss of the step, where the
    training tells it; see `loss`.
    """

    event: HookEvent
    _: KW_ONLY
    step: int | None = None
    epoch: int | None = None
    experiment: str | None = None
    attempt: Attempt | None = None
    checkpoint: Checkpoint | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None
    error: BaseException | None = None
    at: datetime = field(default_factory=clock.now, compare=False)
    tensors: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    read_loss: Callable[[], float | None] | None = field(default=None, compare=False, repr=False)
    _answers: _Answers = field(
        default_factory=lambda: _Answers([], []), init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        # Copies: a background hook reads them when the trainer has long filled its own dict anew.
        object.__setattr__(self, "event", HookEvent(self.event))
        object.__setattr__(self, "metrics", MappingProxyType(dict(self.metrics)))
        object.__setattr__(self, "data", MappingProxyType(dict(self.data)))

    @property
    def loss(self) -> float | None:
        """The loss of the step just made: of the weights before it. To read it may wait for the device.

        Where the training tells no other, and in a BACKGROUND hook, the one among the metrics; else None.
        """
        found = self.read_loss() if self.read_loss is not None else None
        return self.metrics.get("loss") if found is None else found

    @property
    def save_requests(self) -> tuple[str, ...]:
        """The reasons for which hooks have asked for a save so far, in the order they asked."""
        return tuple(self._answers.requests)

    @property
    def keep_requests(self) -> tuple[tuple[int, str, str], ...]:
        """What hooks have asked to keep so far: step, tag and reason of each."""
        return tuple(self._answers.keeps)

    def request_keep(self, step: int, tag: str, reason: str) -> None:
        """Ask that the newest checkpoint of this step or an earlier one be kept for good, and tagged.

        Raises UsageError in a BACKGROUND hook.
        """
        self._refuse_in_background("ask for a checkpoint to be kept")
        self._answers.keeps.append((step, tag, reason))

    def request_save(self, reason: str) -> None:
        """Ask for a save. It is made at the next instant at which a resume would be exact, not here.

        Raises UsageError in a BACKGROUND hook, which runs when the caller has already gone on.
        """
        self._refuse_in_background("ask for a save")
        self._answers.requests.append(reason)

    def veto(self, reason: str) -> Literal[False]:
        """Refuse what is about to happen, and say why: `return context.veto("the disk is nearly full")`.

        Raises UsageError where there is nothing left to refuse: on an event that is not a `BEFORE_*`,
        and in a BACKGROUND hook.
        """
        if not self.event.can_be_vetoed or self._answers.background:
            raise UsageError(
                f"nothing can be vetoed here: only BEFORE_* events can, and not by a BACKGROUND hook "
                f"(this is {self.event.name})",
                kind="veto",
                event=self.event,
            )
        self._answers.veto = reason
        return False

    def for_call(self, *, background: bool = False) -> HookContext:
        """The same facts with answers of their own, for one call of one hook. For the hook manager.

        What an abandoned hook says later lands in answers that nobody reads any more.
        """
        view = copy.copy(self)
        mine = self._answers
        answers = _Answers(list(mine.requests), list(mine.keeps), background=background)
        object.__setattr__(view, "_answers", answers)
        if background:  # by then their memory holds another state, and the device is at another step
            object.__setattr__(view, "tensors", None)
            object.__setattr__(view, "read_loss", None)
        return view

    def take_answers(self, view: HookContext) -> str | None:
        """Add the requests made through `view` to this context's; the reason of its veto, if any."""
        mine, theirs = self._answers, view._answers
        mine.requests.extend(theirs.requests[len(mine.requests) :])
        mine.keeps.extend(theirs.keeps[len(mine.keeps) :])
        return theirs.veto

    def _refuse_in_background(self, what: str) -> None:
        if self._answers.background:
            raise UsageError(
                f"a BACKGROUND hook cannot {what}: nobody waits for its answer; give the hook another priority",
                kind="background",
                event=self.event,
            )
