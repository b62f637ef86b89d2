"""The questions that references ask, answered by a list of checkpoints as the catalog would: for when it is away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

from ckpt_core.model import Checkpoint

__all__ = ["Answers", "Listed"]


class Answers(Protocol):
    """What a catalog and a list of checkpoints both can tell. See `Catalog` for each."""

    def checkpoints(
        self,
        experiment: str | None = None,
        *,
        lineage: str | None = None,
        tag: str | None = None,
        step: int | None = None,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> list[Checkpoint]: ...

    def count(self, experiment: str) -> int: ...

    def newest(self, experiment: str) -> Checkpoint | None: ...

    def best(
        self,
        experiment: str,
        metric: str,
        mode: Literal["min", "max"],
        lineage: str | None = None,
        limit: int = 1,
    ) -> list[Checkpoint]: ...

    def find_prefix(
        self, prefix: str, experiment: str | None = None, limit: int = 10
    ) -> list[Checkpoint]: ...

    def experiment_names(self) -> list[str]: ...

    def nearest_step(self, experiment: str, step: int) -> int | None: ...


class Listed:
    """Answers by a list of checkpoints."""

    def __init__(self, found: Sequence[Checkpoint]) -> None:
        self._found = found

    def checkpoints(
        self,
        experiment: str | None = None,
        *,
        lineage: str | None = None,
        tag: str | None = None,
        step: int | None = None,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> list[Checkpoint]:
        chosen = [
            c
            for c in self._found
            if experiment in (None, c.experiment)
            and lineage in (None, c.attempt.lineage)
            and (tag is None or tag in c.tags)
            and step in (None, c.step)
        ]
        if experiment is None:
            chosen.sort(key=lambda c: (c.created_at, c.id), reverse=newest_first)
        else:
            chosen.sort(key=lambda c: c.order, reverse=newest_first)
        return chosen[:limit]

    def count(self, experiment: str) -> int:
        return len(self.checkpoints(experiment))

    def newest(self, experiment: str) -> Checkpoint | None:
        return max(self.checkpoints(experiment), key=lambda c: c.order, default=None)

    def best(
        self,
        experiment: str,
        metric: str,
        mode: Literal["min", "max"],
        lineage: str | None = None,
        limit: int = 1,
    ) -> list[Checkpoint]:
        carrying = [
            c
            for c in self.checkpoints(experiment, lineage=lineage)
            if not math.isnan(c.metrics.get(metric, math.nan))
        ]
        sign = 1.0 if mode == "min" else -1.0
        return sorted(carrying, key=lambda c: (sign * c.metrics[metric], c.order))[:limit]

    def find_prefix(self, prefix: str, experiment: str | None = None, limit: int = 10) -> list[Checkpoint]:
        chosen = [c for c in self.checkpoints(experiment) if c.id.startswith(prefix)]
        return sorted(chosen, key=lambda c: c.id)[:limit]

    def experiment_names(self) -> list[str]:
        return sorted({c.experiment for c in self._found})

    def nearest_step(self, experiment: str, step: int) -> int | None:
        steps = (c.step for c in self.checkpoints(experiment))
        return min(steps, key=lambda s: (abs(s - step), s), default=None)
