"""Deleting what the retention policies let go, decided anew after every save by what the store holds."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from itertools import chain

from ckpt_core import clock
from ckpt_core.errors import CkptError, CorruptionError
from ckpt_core.hooks import HookContext, HookEvent, HookManager, HookOutcome
from ckpt_core.maintenance.census import live_keys
from ckpt_core.maintenance.marks import Marks
from ckpt_core.model import Checkpoint, Decision
from ckpt_core.pipeline.resolve import Mode
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.policies import LastingPolicy, RetentionContext, RetentionPolicy, decide, worth_remembering

__all__ = ["Retention"]

_FEW = 100  # files of which to ask one by one is cheaper than to list a folder
_log = logging.getLogger("ckpt_core.retention")


class Retention:
    """The retention policies of a manager at work. For one thread at a time, but for `decisions`.

    It remembers those checkpoints of the lineage that is being written by which the next ones are decided about
    (see `worth_remembering`), so that what it does after a save does not depend on how many stand; where nothing
    is to be deleted, the store is not looked at. Before anything is deleted it is: what others pin or tag is
    kept, and what they take pins or tags off goes when next something does.
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
        self._workspace.index.synchronise(self._experiment)
        return self._decide(self._standing(lineage))

    def apply(self, saved: Checkpoint) -> list[Decision]:
        """Deletes what no policy keeps in the lineage of a checkpoint that was just saved.

        Returns the decisions about those remembered. Raises StoreError, CorruptionError: then less was deleted,
        or bytes are left for `ckpt prune`, and nothing else is the matter.
        """
        if not self._policies:
            return []
        if self._lineage != saved.attempt.lineage:
            self._remember(saved)
        else:
            self._remembered[saved.id] = saved
            if self._marked != self._workspace.marked:
                self._read_marks()
        decisions = self._decide(self._remembered.values())
        if not all(decision.keep for decision in decisions):
            marks = self._read_marks()
            if self._has_changed():
                self._remember(saved)
            decisions = self._decide(self._remembered.values())
            self._delete(
                [each for each in decisions if not each.keep and each.checkpoint.id != saved.id], marks
            )
        kept = worth_remembering(self._policies, tuple(self._remembered.values()), self._context())
        self._remembered = {checkpoint.id: checkpoint for checkpoint in kept}
        return decisions

    def _standing(self, lineage: str) -> list[Checkpoint]:
        return self._workspace.index.ask(
            lambda answers: answers.checkpoints(self._experiment, lineage=lineage), self._experiment
        )

    def _remember(self, saved: Checkpoint) -> None:
        self._workspace.index.synchronise(self._experiment)
        self._remembered = {c.id: c for c in (*self._standing(saved.attempt.lineage), saved)}
        self._lineage = saved.attempt.lineage
        self._read_marks()

    def _read_marks(self) -> Marks:
        """The tags and pins as the store has them, also on what is remembered."""
        self._marked = self._workspace.marked
        marks = self._workspace.index.marks(self._experiment)
        self._remembered = {c.id: marks.on(c) for c in self._remembered.values()}
        return marks

    def _has_changed(self) -> bool:
        """Whether others forgot something that is remembered, or may have saved something that counts.

        What others save makes no difference to a policy that is a LastingPolicy: what it does not keep of those
        remembered it does not keep of more either.
        """
        store = self._workspace.repository.store
        if not all(isinstance(policy, LastingPolicy) for policy in self._policies):
            return True
        keys = [checkpoint.key for checkpoint in self._remembered.values()]
        if len(keys) <= _FEW:
            return not all(store.exists(key) for key in keys)
        names = set(store.names(keys[0].rpartition("/")[0]))
        return not all(key.rpartition("/")[2] in names for key in keys)

    def _delete(self, doomed: Sequence[Decision], marks: Marks) -> None:
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
                self._reclaim(marks)
        finally:
            for checkpoint in gone:
                self._remembered.pop(checkpoint.id, None)
                self._tell_deleted(checkpoint)

    def _reclaim(self, marks: Marks) -> None:
        """Frees what the forgotten checkpoints of the experiment held: those forgotten now, and those that were
        too few to look through the store for them, or that an interruption left behind. What somebody forgot
        and may bring back stays."""
        repository = self._workspace.repository
        # The trash before its notes: whoever gives grace writes the note first.
        found = list(repository.manifest_keys(self._experiment, trash=True))
        granted = repository.trash.granted()
        trash = [key for key in found if key.key not in granted]
        if not self._workspace.is_worth_reclaiming(len(trash)):
            return
        forgotten = {key.id for key in trash}
        keys = chain(live_keys(repository), granted)
        self._workspace.reclaim(
            [key.key for key in trash],
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
