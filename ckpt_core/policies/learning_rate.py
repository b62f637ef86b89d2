"""A save policy that goes by the learning rate: before it drops, and when training has settled after it.

A schedule that falls a little with every step has no drops; one that stands and then falls has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ckpt_core.errors import UsageError
from ckpt_core.hooks import HookEvent
from ckpt_core.policies.arguments import check_count, check_quantity
from ckpt_core.policies.save import Memory, Progress, _Combinable

__all__ = ["OnLearningRateDrop"]

_STANDS = 2
"""Steps at one rate after which it is said to stand."""


@dataclass(frozen=True, slots=True)
class OnLearningRateDrop(_Combinable):
    """Before and after the learning rate drops: falls from where it stood to `ratio` of it, or lower.

    Before: when the rate has been lowered and no step was made with it. After: `settle` steps later, with the new one;
    0 leaves that out.
    """

    ratio: float = 0.5
    settle: int = 100

    reads: ClassVar[frozenset[str]] = frozenset({"learning_rate"})

    def __post_init__(self) -> None:
        check_quantity("OnLearningRateDrop.ratio", self.ratio)
        if self.ratio >= 1:
            raise UsageError(
                f"OnLearningRateDrop.ratio is {self.ratio!r}; give the share that is left of the rate, below 1",
                argument="OnLearningRateDrop.ratio",
            )
        check_count("OnLearningRateDrop.settle", self.settle, least=0)

    def observe(self, progress: Progress) -> Memory:
        memory, rate = dict(progress.memory), progress.learning_rate
        memory.pop("due", None)
        if rate is None or not math.isfinite(rate):
            return memory
        before = memory.get("rate")
        if rate == before:
            if progress.event is HookEvent.STEP_END:
                memory["stood"] = min(memory["stood"] + 1, _STANDS)
                if progress.step >= memory.get("after", math.inf):
                    del memory["after"]
                    memory["due"] = "after"
            return memory
        dropped = before is not None and memory["stood"] >= _STANDS and rate <= self.ratio * before
        memory |= {"rate": rate, "stood": 0}
        if dropped:
            memory |= {"due": "before", "from": before, "fell": progress.step}
            if self.settle:
                memory["after"] = progress.step + self.settle
        return memory

    def wants(self, progress: Progress) -> str | None:
        memory = progress.memory
        match memory.get("due"):
            case "before":
                return f"before the learning rate drops from {memory['from']:g} to {memory['rate']:g}"
            case "after":
                steps = progress.step - memory["fell"]
                return f"{steps} steps after the learning rate dropped from {memory['from']:g} to {memory['rate']:g}"
        return None
