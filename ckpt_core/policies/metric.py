"""Save policies that go by a metric: where it improves, and where it does so no more.

A value counts once for each step, whichever of the events of that step carries it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ckpt_core.errors import UsageError
from ckpt_core.policies.arguments import Mode, check_count, check_mode, check_quantity
from ckpt_core.policies.save import Memory, Progress, _Combinable

__all__ = ["OnImprovement", "OnPlateau"]


@dataclass(frozen=True, slots=True)
class OnImprovement(_Combinable):
    """When a metric is better, by more than `min_delta`, than the best value saved so far.

    The first value counts as an improvement; one that is not finite never does. After a save that it has asked for,
    it passes over `patience` values, be they as good as they may: a training that improves with every evaluation is
    not saved with every one.
    """

    metric: str
    mode: Mode = "min"
    min_delta: float = 0.0
    patience: int = 0

    def __post_init__(self) -> None:
        _check(self, self.metric, self.mode, self.min_delta)
        check_count("OnImprovement.patience", self.patience, least=0)

    def observe(self, progress: Progress) -> Memory:
        memory = progress.memory
        if not self.patience or not _is_new(self.metric, progress):
            return {**memory, "due": False} if memory else {}
        left = max(0, memory.get("left", 0) - 1) if memory else 0
        due = left == 0 and self._reason(progress) is not None
        return {"step": progress.step, "left": self.patience + 1 if due else left, "due": due}

    def wants(self, progress: Progress) -> str | None:
        if self.patience and not progress.memory.get("due", False):
            return None
        return self._reason(progress)

    def _reason(self, progress: Progress) -> str | None:
        value = progress.metrics.get(self.metric, math.nan)
        if not math.isfinite(value):
            return None
        best = (progress.lowest if self.mode == "min" else progress.highest).get(self.metric)
        if best is None:
            return f"first {self.metric}: {value:.6g}"
        if not _is_better(value, best, self.mode, self.min_delta):
            return None
        return f"{self.metric} improved from {best:.6g} to {value:.6g}"


@dataclass(frozen=True, slots=True)
class OnPlateau(_Combinable):
    """When a metric has not become better, by more than `min_delta`, for `patience` values in a row: once for each
    plateau, before whatever is changed then. A value that is not finite is none that is better.
    """

    metric: str
    mode: Mode = "min"
    patience: int = 10
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        _check(self, self.metric, self.mode, self.min_delta)
        check_count("OnPlateau.patience", self.patience)

    def observe(self, progress: Progress) -> Memory:
        memory = progress.memory
        if not _is_new(self.metric, progress):
            return {**memory, "due": False} if memory else {}
        value, best = progress.metrics[self.metric], memory.get("best")
        if math.isfinite(value) and (best is None or _is_better(value, best, self.mode, self.min_delta)):
            return {"step": progress.step, "best": value, "since": 0, "due": False}
        since = memory.get("since", 0) + 1
        return {"step": progress.step, "best": best, "since": since, "due": since == self.patience}

    def wants(self, progress: Progress) -> str | None:
        if not progress.memory.get("due", False):
            return None
        best = progress.memory["best"]
        than = "" if best is None else f" on {best:.6g}"
        return f"{self.metric} has not improved{than} for {self.patience} values"


def _is_new(metric: str, progress: Progress) -> bool:
    return metric in progress.metrics and progress.memory.get("step") != progress.step


def _is_better(value: float, best: float, mode: Mode, min_delta: float) -> bool:
    return (best - value if mode == "min" else value - best) > min_delta


def _check(policy: object, metric: str, mode: str, min_delta: float) -> None:
    name = type(policy).__name__
    if not isinstance(metric, str) or not metric:
        raise UsageError(
            f'{name}.metric is {metric!r}; name a metric, as "val_loss"', argument=f"{name}.metric"
        )
    check_mode(f"{name}.mode", mode)
    check_quantity(f"{name}.min_delta", min_delta, zero=True)
