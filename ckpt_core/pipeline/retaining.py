"""Deleting what the retention policies let go, decided anew after every save by what the store holds."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from ckpt_core import clock
from ckpt_core.errors import CkptError, CorruptionError
from ckpt_core.hooks import HookContext, HookEvent, HookManager, HookOutcome
from ckpt_core.maintenance.census import live_keys
from ckpt_core.maintenance.marks import Marks
from ckpt_core.model import Checkpoint, Decision
from ckpt_core.pipeline.resolve import Mode
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.policies import RetentionContext, RetentionPolicy, decide

__all__ = ["Retention"]

_log = logging.getLogger("ckpt_core.retention")


class Retention:
    """The retention policies of a manager at work. For one thread at a time, but for `decisions`.

    It remembers the checkpoints of the lineage that is being written, so that a save after which nothing is
    to be deleted costs no look at the store. Before anything is deleted, the store is looked at: what others
    pin or tag is kept, and what they take pins or tags off goes when next something does.
    """

    def __init__(
        self,
        workspace: Workspace,
        experiment: str,
        hooks: HookManager,
        policies: Sequence[RetentionPolicy],
        metric: str | None,
        mode: Mode,
    ) -> None:
        self._workspace = workspace
        self._experiment = experiment
        self._hooks = hooks
        self._policies = tuple(policies)
        self._metric = metric
        self._mode = mode
        self._lineage = ""
        self._marked = 0
        self._remembered: dict[str, Checkpoint] = {}

    @staticmethod
    def check(policies: Sequence[RetentionPolicy], metric: str | None, mode: Mode) -> None:
        """Raises UsageError for a policy that cannot work with this metric, before anything is saved."""
        decide(tuple(policies), (), RetentionContext(clock.now(), metric, mode))

    def decisions(self, lineage: str) -> list[Decision]:
        """What would be done to a lineage now, with reasons. Changes nothing."""
        standing = self._workspace.index.standing(self._experiment)
        return self._decide([c for c in standing if c.attempt.lineage == lineage])

    def apply(self, saved: Checkpoint) -> list[Decision]:
        """Deletes what no policy keeps in the lineage of a checkpoint that was just saved.

        Returns the decisions. Raises StoreError, CorruptionError: then less was deleted, or bytes are left
        for `ckpt prune`, and nothing else is the matter.
        """
        if not self._policies:
            return []
        decisions: list[Decision] | None = None
        if self._lineage == saved.attempt.lineage and self._marked == self._workspace.marked:
            self._remembered[saved.id] = saved
            decisions = self._decide(self._remembered.values())
            if all(decision.keep for decision in decisions):
                return decisions
        return self._look_and_delete(saved, decisions)

    def _look_and_delete(self, saved: Checkpoint, decisions: list[Decision] | None) -> list[Decision]:
        """`decisions` are those made by memory: they hold if the store looks as it is remembered."""
        remembered, self._marked = self._remembered, self._workspace.marked
        keys = set(live_keys(self._workspace.repository, {c.key for c in remembered.values()}))
        marks = self._workspace.index.marks(self._experiment)
        standing = self._workspace.index.standing(self._experiment, keys, marks)
        self._lineage = saved.attempt.lineage
        self._remembered = {c.id: c for c in standing if c.attempt.lineage == self._lineage}
        if decisions is None or self._remembered != remembered:
            decisions = self._decide(self._remembered.values())
        doomed = [each for each in decisions if not each.keep and each.checkpoint.id != saved.id]
        if doomed and marks.damaged:
            raise CorruptionError(
                f"nothing is deleted while it is not known what {marks.damaged[0]} keeps: remove that file, "
                "or set the tag or pin again",
                kind="document",
                key=marks.damaged[0],
            )
        gone = self._workspace.forget([each.checkpoint for each in doomed if self._allowed(each)])
        try:
            if gone:
                self._reclaim(keys, marks)
        finally:
            for checkpoint in gone:
                self._remembered.pop(checkpoint.id, None)
                self._tell_deleted(checkpoint)
        return decisions

    def _reclaim(self, keys: set[str], marks: Marks) -> None:
        """Frees what the forgotten checkpoints of the experiment held: those forgotten now, and those that
        an interruption left behind earlier."""
        trash = list(self._workspace.repository.manifest_keys(self._experiment, trash=True))
        forgotten = {found.id for found in trash}
        self._workspace.reclaim(
            [found.key for found in trash],
            {key for key in keys if key.rpartition("-")[2].removesuffix(".json") not in forgotten},
            [key for key, reference in marks.references.items() if reference.checkpoint in forgotten],
        )

    def _tell_deleted(self, checkpoint: Checkpoint) -> None:
        _log.info("deleted checkpoint %s (step %d)", checkpoint.id, checkpoint.step)
        try:
            self._fire(HookEvent.AFTER_DELETE, checkpoint)
        except CkptError as error:
            _log.error("step %d is deleted, but a hook on it failed: %s", checkpoint.step, error)

    def _allowed(self, decision: Decision) -> bool:
        """Whether the hooks let it go. One that raises keeps it: what is deleted does not come back."""
        checkpoint = decision.checkpoint
        try:
            outcome = self._fire(HookEvent.BEFORE_DELETE, checkpoint, reason="; ".join(decision.reasons))
        except CkptError as error:
            _log.error("step %d is kept: %s", checkpoint.step, error)
            return False
        if outcome.vetoed:
            _log.warning("step %d is kept: %s", checkpoint.step, "; ".join(outcome.reasons))
        return not outcome.vetoed

    def _decide(self, checkpoints: Collection[Checkpoint]) -> list[Decision]:
        return decide(self._policies, tuple(checkpoints), self._context())

    def _context(self) -> RetentionContext:
        return RetentionContext(clock.now(), self._metric, self._mode)

    def _fire(self, event: HookEvent, checkpoint: Checkpoint, reason: str | None = None) -> HookOutcome:
        context = HookContext(
            event,
            experiment=self._experiment,
            step=checkpoint.step,
            attempt=checkpoint.attempt,
            checkpoint=checkpoint,
            metrics=checkpoint.metrics,
            reason=reason,
        )
        return self._hooks.fire(context)
