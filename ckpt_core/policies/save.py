"""When to save: the contract of save policies, what they judge by, and the policies themselves.

Pure and stateless: what has happened so far comes in as `Progress`, kept up by `SavePolicyHook`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from ckpt_core.errors import UsageError
from ckpt_core.hooks import HookEvent
from ckpt_core.policies.arguments import Mode, check_count, check_mode, check_quantity, named

__all__ = [
    "AnyOf",
    "EveryEpochs",
    "EveryMinutes",
    "EverySteps",
    "Never",
    "OnImprovement",
    "Progress",
    "SavePolicy",
    "save_policy_from",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where training stands at one event, and what was saved before.

    `epoch` counts from 0. `begun_step` and `begun_at`: where and when this process began to train.
    `last_saved_epoch` is the epoch whose end was saved last; the other two `last_saved_*` are of the last
    save of any kind. `lowest` and `highest` hold the extremes of each metric among what was saved in this
    lineage. `saving`: a save is being made. `save_cost`: by how much one holds training up, once that is known.
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


class SavePolicy(Protocol):
    """A reason to save. Pure: the same progress gives the same answer."""

    def wants(self, progress: Progress) -> str | None:
        """Why a checkpoint should be saved now, or None. Asked at STEP_END, EPOCH_END, EVALUATE_END."""
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
class OnImprovement(_Combinable):
    """When a metric is better, by more than `min_delta`, than the best value saved so far.

    The first value counts as an improvement; one that is not finite never does.
    """

    metric: str
    mode: Mode = "min"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not self.metric:
            raise UsageError(
                f'OnImprovement.metric is {self.metric!r}; name a metric, as "val_loss"',
                argument="OnImprovement.metric",
            )
        check_mode("OnImprovement.mode", self.mode)
        check_quantity("OnImprovement.min_delta", self.min_delta, zero=True)

    def wants(self, progress: Progress) -> str | None:
        value = progress.metrics.get(self.metric, math.nan)
        if not math.isfinite(value):
            return None
        best = (progress.lowest if self.mode == "min" else progress.highest).get(self.metric)
        if best is None:
            return f"first {self.metric}: {value:.6g}"
        gain = best - value if self.mode == "min" else value - best
        return f"{self.metric} improved from {best:.6g} to {value:.6g}" if gain > self.min_delta else None


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
        reasons = [reason for policy in self.policies if (reason := policy.wants(progress))]
        return "; ".join(dict.fromkeys(reasons)) or None


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
