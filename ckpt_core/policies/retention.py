"""What to keep, and why: the contract of retention policies, their union, and the policies by rank and name.

Thinning out by step or time is in `thinning`, by size in `capacity`. Nothing here deletes anything.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Protocol, runtime_checkable

from ckpt_core.errors import NotFoundError, UsageError
from ckpt_core.model import Checkpoint, Decision
from ckpt_core.policies.arguments import Mode, check_count, check_mode

__all__ = [
    "KeepAll",
    "KeepBest",
    "KeepLast",
    "KeepTagged",
    "LastingPolicy",
    "RetentionContext",
    "RetentionPolicy",
    "decide",
    "decide_lineages",
    "oldest_first",
    "worth_remembering",
]


@dataclass(frozen=True, slots=True)
class RetentionContext:
    """What policies judge by besides the checkpoints: the present moment, and the experiment's metric."""

    now: datetime
    metric: str | None = None
    mode: Mode = "min"

    def __post_init__(self) -> None:
        check_mode("RetentionContext.mode", self.mode)


class RetentionPolicy(Protocol):
    """A reason to keep checkpoints. Pure: the same arguments give the same answer, in any order of them.

    Policies do not know of each other; a checkpoint is deleted only if no policy keeps it.
    """

    def keep(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> Mapping[str, str]:
        """The ids of those of `checkpoints` (one lineage, in any order) to keep, each with the reason."""
        ...

    def describe(self, context: RetentionContext) -> str:
        """What it keeps, in a few words: `last 3`. Raises UsageError if it cannot work in this context."""
        ...


@runtime_checkable
class LastingPolicy(RetentionPolicy, Protocol):
    """A policy by whose answers a manager need not remember all checkpoints that it ever kept.

    It promises: what it keeps of many it keeps of any part of them, too; and what it does not keep makes no
    difference to what else it keeps. To keep the best, or the newest, of whatever kind, is to do so.
    """

    def lasting(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> Collection[str]:
        """The ids of those of `checkpoints` that it keeps, will keep whatever is saved later, and need not be
        shown again to decide about the others."""
        ...


def worth_remembering(
    policies: Sequence[RetentionPolicy], checkpoints: Sequence[Checkpoint], context: RetentionContext
) -> list[Checkpoint]:
    """Those of one lineage by which all that comes will be decided as by all of them: those that may be let go
    some day, and those by which a policy judges others. All, where a policy does not tell."""
    lasting: set[str] = set()
    needed: set[str] = set()
    for policy in policies:
        if not isinstance(policy, LastingPolicy):
            return list(checkpoints)
        lasts = set(policy.lasting(checkpoints, context))
        needed |= policy.keep(checkpoints, context).keys() - lasts
        lasting |= lasts
    return [c for c in checkpoints if c.id in needed or c.id not in lasting]


def decide(
    policies: Sequence[RetentionPolicy], checkpoints: Sequence[Checkpoint], context: RetentionContext
) -> list[Decision]:
    """One decision for each of the checkpoints of one lineage, from the oldest to the newest.

    A checkpoint is kept if any policy keeps it, if it is pinned, or if it is the newest, so that there is
    always one to resume from. Without a policy everything is kept. Every decision says why, that to delete
    by naming the policies that did not keep it.

    Raises UsageError if a policy cannot work in this context, whatever the checkpoints: called without
    any, it checks the policies.
    """
    ordered = oldest_first(checkpoints)
    if not policies:
        return [Decision(checkpoint, True, ("no retention policy",)) for checkpoint in ordered]
    descriptions = [policy.describe(context) for policy in policies]
    kept = [policy.keep(ordered, context) for policy in policies]
    decisions = []
    for checkpoint in ordered:
        reasons = [
            keeps[checkpoint.id] or description
            for keeps, description in zip(kept, descriptions, strict=True)
            if checkpoint.id in keeps
        ]
        if checkpoint.pinned:
            reasons.append("pinned")
        if checkpoint is ordered[-1]:
            reasons.append("newest")
        keep = bool(reasons)
        if not keep:
            reasons.append("kept by none of: " + ", ".join(descriptions))
        decisions.append(Decision(checkpoint, keep, tuple(dict.fromkeys(reasons))))
    return decisions


def decide_lineages(
    policies: Sequence[RetentionPolicy], checkpoints: Sequence[Checkpoint], context: RetentionContext
) -> list[Decision]:
    """What the policies say of each lineage of these checkpoints, experiment by experiment.

    Raises NotFoundError (kind `metric`) for a lineage that has nothing to be the best by: most likely a typing error,
    which would keep none of it.
    """
    lineages: dict[tuple[str, str], list[Checkpoint]] = {}
    for checkpoint in sorted(checkpoints, key=lambda c: (c.experiment, *c.order)):
        lineages.setdefault((checkpoint.experiment, checkpoint.attempt.lineage), []).append(checkpoint)
    best = next((policy for policy in policies if isinstance(policy, KeepBest)), None)
    metric = None if best is None else best.metric or context.metric
    for (experiment, _), group in lineages.items():
        if metric is not None and not any(metric in c.metrics for c in group):
            known = sorted({name for c in group for name in c.metrics})
            raise NotFoundError(
                f"a lineage of {experiment!r} has no checkpoint with the metric {metric!r} (it has "
                f"{', '.join(known) or 'none'}), so to keep the best would keep none of it: name another metric, or "
                "other experiments",
                kind="metric",
                metric=metric,
            )
    return [decision for group in lineages.values() for decision in decide(policies, group, context)]


def oldest_first(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """In the order in which the lineage made them."""
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.order)


@dataclass(frozen=True, slots=True)
class KeepAll:
    """Keeps everything."""

    def keep(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> Mapping[str, str]:
        return dict.fromkeys((checkpoint.id for checkpoint in checkpoints), self.describe(context))

    def lasting(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> Collection[str]:
        return [checkpoint.id for checkpoint in checkpoints]

    def describe(self, context: RetentionContext) -> str:
        return "all"


@dataclass(frozen=True, slots=True)
class KeepLast:
    """Keeps the newest `n`."""

    n: int

    def __post_init__(self) -> None:
        check_count("KeepLast.n", self.n)

    def keep(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> Mapping[str, str]:
        newest = oldest_first(checkpoints)[-self.n :]
        return dict.fromkeys((checkpoint.id for checkpoint in newest), self.describe(context))

    def lasting(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> Collection[str]:
        return ()

    def describe(self, context: RetentionContext) -> str:
        return f"last {self.n}"


@dataclass(frozen=True, slots=True)
class KeepBest:
    """Keeps the `n` with the best value of a metric; of equal ones the older.

    `metric` and `mode` are those of the experiment if left out. Another metric than the experiment's needs
    its own `mode`: a guess would keep the worst. Checkpoints without a value, or with NaN, have no rank.
    """

    n: int
    metric: str | None = None
    mode: Mode | None = None

    def __post_init__(self) -> None:
        check_count("KeepBest.n", self.n)
        if self.mode is not None:
            check_mode("KeepBest.mode", self.mode)

    def keep(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> Mapping[str, str]:
        metric, mode = self._resolve(context)
        ranked = [
            checkpoint
            for checkpoint in oldest_first(checkpoints)
            if not math.isnan(checkpoint.metrics.get(metric, math.nan))
        ]
        # A stable sort, also under `reverse`: of equal ones the older stays in front.
        ranked.sort(key=lambda checkpoint: checkpoint.metrics[metric], reverse=mode == "max")
        return dict.fromkeys((checkpoint.id for checkpoint in ranked[: self.n]), self.describe(context))

    def lasting(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> Collection[str]:
        return ()

    def describe(self, context: RetentionContext) -> str:
        metric, mode = self._resolve(context)
        return f"best {self.n} by {metric} ({mode})"

    def _resolve(self, context: RetentionContext) -> tuple[str, Mode]:
        metric = self.metric or context.metric
        if metric is None:
            raise UsageError(
                f"KeepBest({self.n}) has no metric to rank by; give it one, as in "
                f'KeepBest({self.n}, metric="val_loss", mode="min"), or give the experiment one',
                argument="KeepBest.metric",
            )
        if self.mode is not None:
            return metric, self.mode
        if metric != context.metric:
            raise UsageError(
                f"KeepBest cannot know which way {metric!r} is better, as it is not the metric of the "
                f'experiment; say mode="min" or mode="max"',
                argument="KeepBest.mode",
                metric=metric,
            )
        return metric, context.mode


@dataclass(frozen=True, slots=True)
class KeepTagged:
    """Keeps those with a tag that matches `pattern` (`*`, `?`, `[…]`, as in shells; case matters)."""

    pattern: str = "*"

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or not self.pattern:
            raise UsageError(
                f'KeepTagged.pattern is {self.pattern!r}; give a pattern, as "release-*"',
                argument="KeepTagged.pattern",
            )

    def keep(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> Mapping[str, str]:
        matching = {
            checkpoint.id: [tag for tag in checkpoint.tags if fnmatchcase(tag, self.pattern)]
            for checkpoint in checkpoints
        }
        return {id_: f"tagged {', '.join(sorted(tags))}" for id_, tags in matching.items() if tags}

    def lasting(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> Collection[str]:
        return ()  # a tag may move

    def describe(self, context: RetentionContext) -> str:
        return "tagged" if self.pattern == "*" else f"tagged {self.pattern}"
