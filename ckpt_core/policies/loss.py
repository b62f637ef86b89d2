"""A policy that goes by the loss: what was good before it went astray is kept. It asks for no saves of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from ckpt_core.errors import UsageError
from ckpt_core.hooks import HookEvent
from ckpt_core.policies.arguments import check_count, check_quantity
from ckpt_core.policies.save import Keep, Memory, Progress, _Combinable

__all__ = ["OnLossSpike"]

_LEAST = 8
"""Losses that are known before one of them can be called far out."""
_SIGMA = 1.4826
"""Median of the distances from the median, as a share of the standard deviation: of a normal distribution."""
_FLOOR = 0.01
"""The least spread, as a share of the loss: where that hardly moves, not every tremor is a spike."""


@dataclass(frozen=True, slots=True)
class OnLossSpike(_Combinable):
    """When the loss of a step is NaN, infinite, or above all of the last `window`, and above their median by more
    than `deviations` times their spread: the newest checkpoint from before is kept for good, and tagged `tag`.
    Resume it by that name.

    Nothing is saved for it: what training has become by then is not worth it. A spike is over with the first loss that
    is not far out; after `window` far ones the loss is taken to be what it is now. The spread is that of the middle
    half, in which outliers have no part. `metric`: which of the metrics of a step, where it is not `loss`.
    """

    metric: str = "loss"
    deviations: float = 10.0
    window: int = 50
    tag: str = "last-good"

    def __post_init__(self) -> None:
        for name in ("metric", "tag"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise UsageError(f"OnLossSpike.{name} is {getattr(self, name)!r}; give a name", argument=name)
        check_quantity("OnLossSpike.deviations", self.deviations)
        check_count("OnLossSpike.window", self.window, least=_LEAST)

    reads: ClassVar[frozenset[str]] = frozenset({"loss"})

    def observe(self, progress: Progress) -> Memory:
        memory = {name: value for name, value in progress.memory.items() if name != "spike"}
        loss = progress.loss if self.metric == "loss" else progress.metrics.get(self.metric)
        if loss is None or progress.event is not HookEvent.STEP_END or memory.get("step") == progress.step:
            return memory
        memory["step"] = progress.step
        losses: list[float] = memory.get("losses", [])
        reason = self._astray(loss, losses)
        if reason is None:
            # The loss of this step is that of the weights before it: only of those is it known that they are good.
            return memory | {
                "losses": [*losses, loss][-self.window :],
                "good": progress.step - 1,
                "astray": 0,
            }
        astray = memory.get("astray", 0) + 1
        if math.isfinite(loss) and astray >= self.window:
            return memory | {"losses": [loss], "good": progress.step - 1, "astray": 0}
        return memory | {"astray": astray} | ({"spike": reason} if astray == 1 else {})

    def wants(self, progress: Progress) -> str | None:
        return None

    def keeps(self, progress: Progress) -> Keep | None:
        reason, good = progress.memory.get("spike"), progress.memory.get("good")
        return Keep(good, self.tag, reason) if reason is not None and good is not None else None

    def _astray(self, loss: float, losses: list[float]) -> str | None:
        if not math.isfinite(loss):
            return f"{self.metric} is {loss}"
        if len(losses) < _LEAST:
            return None
        middle = median(losses)
        spread = max(_SIGMA * median(abs(each - middle) for each in losses), _FLOOR * abs(middle))
        # Above all of them, too: a batch that is hard comes again with every epoch.
        if loss - middle <= self.deviations * spread or loss <= max(losses):
            return None
        return f"{self.metric} went up to {loss:.6g} from {middle:.6g}"
