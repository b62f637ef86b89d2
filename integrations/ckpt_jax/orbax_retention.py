"""The engine's retention policies in Orbax's words: which of its checkpoints to preserve.

Deciding only; Orbax deletes, when the new checkpoint is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC
from typing import Any

from ckpt_core import Attempt, Checkpoint, CheckpointManager, clock
from ckpt_core.policies import RetentionContext, RetentionPolicy, decide

__all__ = ["Preservation"]

_ONE = Attempt(1, "", "")


class Preservation:
    """For `preservation_policy=` of Orbax's managers, v0 and v1. What a hook refuses to delete is preserved.

    Orbax's folder is one sequence of steps, whichever attempts wrote them: all are judged together.
    """

    def __init__(
        self,
        policies: Sequence[RetentionPolicy],
        manager: CheckpointManager,
        may_delete: Callable[[Checkpoint], bool],
    ) -> None:
        decide(policies, (), self._context(manager))  # a wrong policy is told now
        self._policies = tuple(policies)
        self._manager = manager
        self._may_delete = may_delete

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object = None) -> list[bool]:
        """One answer for each of Orbax's checkpoints."""
        recorded = {checkpoint.step: checkpoint for checkpoint in self._manager.checkpoints()}
        judged = [self._checkpoint(info, recorded.get(info.step)) for info in checkpoints]
        decisions = decide(self._policies, judged, self._context(self._manager))
        dropped = {decision.checkpoint.id for decision in decisions if not decision.keep}
        return [
            checkpoint.id not in dropped or not self._may_delete(recorded.get(checkpoint.step, checkpoint))
            for checkpoint in judged
        ]

    def _checkpoint(self, info: Any, recorded: Checkpoint | None) -> Checkpoint:
        values = info.metrics if isinstance(info.metrics, dict) else {}
        metrics = {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}
        if (
            recorded is not None
        ):  # with its tags and pins; Orbax keeps metrics on disk only if it is to go by them
            return replace(recorded, attempt=_ONE, metrics={**recorded.metrics, **metrics})
        at = info.time if info.time.tzinfo is not None else info.time.replace(tzinfo=UTC)
        return Checkpoint(
            id=f"step {info.step}", experiment=self._manager.experiment, step=info.step, created_at=at,
            attempt=_ONE, parent=None, key="", digest="", logical_bytes=0, written_bytes=0, tensor_count=0,
            metrics=metrics,
        )  # fmt: skip

    @staticmethod
    def _context(manager: CheckpointManager) -> RetentionContext:
        return RetentionContext(clock.now(), manager.metric, manager.mode)
