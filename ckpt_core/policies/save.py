"""When to save: the contract of save policies, what they judge by, and the policies by steps, epochs and time.

Pure: what has happened so far comes in as `Progress`, kept up by `SavePolicyHook`. What a policy wants to remember it
says by `observe`, and finds in `Progress.memory`; that is saved with each checkpoint and put back by a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from ckpt_core.errors import UsageError
from ckpt_core.hooks import HookEvent
from ckpt_core.policies.arguments import check_count, check_quantity, named

__all__ = [
    "AnyOf",
    "EveryEpochs",
    "EveryMinutes",
    "EverySteps",
    "Keep",
    "Memory",
    "Never",
    "Progress",
    "SavePolicy",
    "kept",
    "remembered",
    "save_policy_from",
]


Memory = Mapping[str, Any]
"""What a policy remembers from one event to the next: plain values."""


@dataclass(frozen=True, slots=True)
class Keep:
    """A wish besides saves: that the newest checkpoint of step `step` or before be kept for good, and tagged."""

    step: int
    tag: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where training stands at one event, and what was saved before.

    `epoch` counts from 0. `begun_step` and `begun_at`: where and when this process began to train.
    `last_saved_epoch` is the epoch whose end was saved last; the other two `last_saved_*` are of the last
    save of any kind. `lowest` and `highest` hold the extremes of each metric among what was saved in this
    lineage. `saving`: a save is being made. `save_cost`: by how much one holds training up, once that is known.
    `loss` is that of the step just made, and `learning_rate` what the next one will use; both only for a policy that
    `reads` them, where the training tells. `signals`: those received since the last event, for a policy that names
    them. `memory`: what the policy has said that it wants to remember.
    """

    event: HookEvent
    step: int
    now: datetime
    begun_at: datetime
    begun_step: int = 0
    epoch: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    last_saved_step: int | None = None
    last_saved_at: datetime | None = None
    last_saved_epoch: int | None = None
    lowest: Mapping[str, float] = field(default_factory=dict)
    highest: Mapping[str, float] = field(default_factory=dict)
    saving: bool = False
    save_cost: timedelta | None = None
    loss: float | None = None
    learning_rate: float | None = None
    signals: tuple[str, ...] = ()
    memory: Memory = field(default_factory=dict)


class SavePolicy(Protocol):
    """A reason to save. Pure: the same progress gives the same answer.

    A policy may have more than `wants`: `observe(progress)` gives what it will remember after this event, and is asked
    just before `wants`, which then finds it in `progress.memory`; `keeps(progress)` gives a `Keep`, several, or None.
    `reads`: the facts that it needs of those that cost something, `"loss"`, `"learning_rate"`; `signals`: names of
    signals that it wants to hear of.
    """

    def wants(self, progress: Progress) -> str | None:
        """Why a checkpoint should be saved now, or None. Asked at STEP_END, EPOCH_END, EVALUATE_END; one that reads
        the learning rate also when that has changed."""
        ...


class _Combinable:
    """`a | b` for save policies; with any object that has `wants` on the other side."""

    __slots__ = ()

    def __or__(self: SavePolicy, other: SavePolicy) -> AnyOf:
        return AnyOf(self, other)

    def __ror__(self: SavePolicy, other: SavePolicy) -> AnyOf:
        return AnyOf(other, self)


@dataclass(frozen=True, slots=True)
class EverySteps(_Combinable):
    """At the end of each step that is a multiple of `n`, or the first one past it where steps are skipped."""

    n: int

    def __post_init__(self) -> None:
        check_count("EverySteps.n", self.n)

    def wants(self, progress: Progress) -> str | None:
        if progress.event is not HookEvent.STEP_END:
            return None
        last = progress.begun_step if progress.last_saved_step is None else progress.last_saved_step
        if last > progress.step:  # training went back to an earlier step
            last = progress.step - 1
        # Not `step % n == 0`: with several optimizers the count goes up by more than one, and with
        # accumulated gradients several batches end on one step.
        return named(self.n, "step") if progress.step // self.n > last // self.n else None


@dataclass(frozen=True, slots=True)
class EveryEpochs(_Combinable):
    """At the end of every `n`-th epoch."""

    n: int = 1

    def __post_init__(self) -> None:
        check_count("EveryEpochs.n", self.n)

    def wants(self, progress: Progress) -> str | None:
        if progress.event is not HookEvent.EPOCH_END or progress.epoch is None:
            return None
        due = (progress.epoch + 1) % self.n == 0 and progress.epoch != progress.last_saved_epoch
        return named(self.n, "epoch") if due else None


@dataclass(frozen=True, slots=True)
class EveryMinutes(_Combinable):
    """At the first event that is `minutes` after the last save, or after training began."""

    minutes: float

    def __post_init__(self) -> None:
        check_quantity("EveryMinutes.minutes", self.minutes)

    def wants(self, progress: Progress) -> str | None:
        elapsed = progress.now - (progress.last_saved_at or progress.begun_at)
        # A clock that was set back must not put off the next save by as much: it is due at once.
        due = elapsed >= timedelta(minutes=self.minutes) or elapsed < timedelta(0)
        return named(self.minutes, "minute") if due else None


@dataclass(frozen=True, slots=True)
class Never(_Combinable):
    """Never: for those who call `save` themselves."""

    def wants(self, progress: Progress) -> str | None:
        return None


@dataclass(frozen=True, slots=True, init=False)
class AnyOf(_Combinable):
    """When any of `policies` wants to; the reason names each that does. The same as `a | b`."""

    policies: tuple[SavePolicy, ...]

    def __init__(self, *policies: SavePolicy) -> None:
        if not policies:
            raise UsageError("AnyOf needs at least one policy; to save never, say Never()", argument="AnyOf")
        flat: list[SavePolicy] = []
        for policy in policies:
            flat.extend(policy.policies if isinstance(policy, AnyOf) else (policy,))
        object.__setattr__(self, "policies", tuple(flat))

    def wants(self, progress: Progress) -> str | None:
        reasons = [
            reason for policy in self.policies if (reason := policy.wants(self._seen_by(policy, progress)))
        ]
        return "; ".join(dict.fromkeys(reasons)) or None

    def observe(self, progress: Progress) -> Memory:
        # By what each policy is, not by its place: another one beside it takes nothing from its memory.
        return {
            repr(policy): memory
            for policy in self.policies
            if (memory := remembered(policy, self._seen_by(policy, progress)))
        }

    def keeps(self, progress: Progress) -> tuple[Keep, ...]:
        """The wishes of all. A tag names one checkpoint: of two that want the same, the earlier is good by both."""
        by_tag: dict[str, Keep] = {}
        for keep in (
            keep for policy in self.policies for keep in kept(policy, self._seen_by(policy, progress))
        ):
            if (other := by_tag.get(keep.tag)) is not None:
                reasons = dict.fromkeys((other.reason, keep.reason))
                keep = Keep(min(other.step, keep.step), keep.tag, "; ".join(reasons))
            by_tag[keep.tag] = keep
        return tuple(by_tag.values())

    @property
    def reads(self) -> frozenset[str]:
        return frozenset().union(*(getattr(policy, "reads", ()) for policy in self.policies))

    @property
    def signals(self) -> tuple[str, ...]:
        named = (name for policy in self.policies for name in getattr(policy, "signals", ()))
        return tuple(dict.fromkeys(named))

    @staticmethod
    def _seen_by(policy: SavePolicy, progress: Progress) -> Progress:
        return replace(progress, memory=progress.memory.get(repr(policy), {}))


def remembered(policy: SavePolicy, progress: Progress) -> Memory:
    """What a policy remembers after this event; nothing, if it is one without a memory."""
    observe: Callable[[Progress], Memory] | None = getattr(policy, "observe", None)
    return {} if observe is None else observe(progress)


def kept(policy: SavePolicy, progress: Progress) -> tuple[Keep, ...]:
    """What a policy wants to be kept, if it is one that has such wishes."""
    keeps: Callable[[Progress], Keep | Iterable[Keep] | None] | None = getattr(policy, "keeps", None)
    found = None if keeps is None else keeps(progress)
    return (found,) if isinstance(found, Keep) else tuple(found or ())


def save_policy_from(
    every_n_steps: int | None = None,
    every_n_epochs: int | None = None,
    every_minutes: float | None = None,
) -> SavePolicy:
    """The policy that the shortcuts of a callback mean: any of those given, Never if none is.

    Raises UsageError for a number below 1 (steps, epochs) or not above 0 (minutes).
    """
    policies: list[SavePolicy] = []
    if every_n_steps is not None:
        policies.append(EverySteps(every_n_steps))
    if every_n_epochs is not None:
        policies.append(EveryEpochs(every_n_epochs))
    if every_minutes is not None:
        policies.append(EveryMinutes(every_minutes))
    if not policies:
        return Never()
    return policies[0] if len(policies) == 1 else AnyOf(*policies)
