"""What happens to a staged state in the background: hooks, commit, catalog, hooks again, retention."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckpt_core import clock
from ckpt_core.config import provenance
from ckpt_core.errors import CkptError, SaveNotDoneError
from ckpt_core.format.documents import Manifest
from ckpt_core.hooks import HookContext, HookEvent, HookManager
from ckpt_core.model import Attempt, Checkpoint, Decision, Snapshot
from ckpt_core.pipeline.queue import SaveHandle
from ckpt_core.pipeline.resolve import Mode, best_first
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.policies import RetentionContext, RetentionPolicy, decide
from ckpt_core.repository import Draft

__all__ = ["SaveRequest", "Saver"]

_log = logging.getLogger("ckpt_core.save")


@dataclass(frozen=True, slots=True)
class SaveRequest:
    """One save, as it was asked for."""

    snapshot: Snapshot
    step: int
    attempt: Attempt
    metrics: dict[str, float]
    tags: tuple[str, ...]
    reason: str | None


@dataclass(slots=True)
class Saver:
    """Makes checkpoints of one experiment. Called by one thread at a time."""

    workspace: Workspace
    experiment: str
    hooks: HookManager
    metric: str | None
    mode: Mode
    retention: Sequence[RetentionPolicy]
    flush_metrics: Callable[[], object]
    base: Manifest | None = None
    """The manifest whose chunks need not be written again."""
    failures: list[tuple[int, BaseException]] = field(default_factory=list)

    def run(self, request: SaveRequest, handle: SaveHandle) -> None:
        """Makes the checkpoint and settles the handle; what follows a commit cannot undo it."""
        try:
            checkpoint = self._commit(request)
        except SaveNotDoneError as error:
            _log.warning("%s", error)
            self.workspace.audit("save", self.experiment, error.kind, step=request.step, reason=str(error))
            handle.fail(error)
            return
        except BaseException as error:
            self._failed(request, error)
            handle.fail(error)
            if not isinstance(error, Exception):
                raise
            return
        handle.succeed(checkpoint)
        self._follow_up(request, checkpoint)

    def retain(self, lineage: str, protect: Sequence[str] = ()) -> list[Decision]:
        """Applies the retention policies to one lineage; returns every decision with its reasons."""
        decisions = self.decisions(lineage)
        doomed = [d for d in decisions if not d.keep and d.checkpoint.id not in protect]
        gone = []
        for decision in doomed:
            checkpoint = decision.checkpoint
            outcome = self._fire(HookEvent.BEFORE_DELETE, checkpoint, reason="; ".join(decision.reasons))
            if outcome.vetoed:
                _log.warning("step %d is kept: %s", checkpoint.step, "; ".join(outcome.reasons))
                continue
            gone.append(checkpoint)
        if not gone:
            return decisions
        packs = {name for c in gone for name, _ in self.workspace.repository.read(c.key).packs}
        self.workspace.forget(gone)
        self.workspace.prune(self.workspace.plan_prune(only=sorted(packs)))
        for checkpoint in gone:
            _log.info("deleted checkpoint %s (step %d)", checkpoint.id, checkpoint.step)
            self._fire(HookEvent.AFTER_DELETE, checkpoint)
        return decisions

    def decisions(self, lineage: str) -> list[Decision]:
        """What retention would do to one lineage now, without doing it."""
        checkpoints = self.workspace.index.lineage(self.experiment, lineage)
        return decide(self.retention, checkpoints, RetentionContext(clock.now(), self.metric, self.mode))

    def _commit(self, request: SaveRequest) -> Checkpoint:
        outcome = self._fire(
            HookEvent.BEFORE_SAVE,
            None,
            step=request.step,
            attempt=request.attempt,
            metrics=request.metrics,
            reason=request.reason,
        )
        if outcome.vetoed:
            raise SaveNotDoneError(
                f"the save of step {request.step} was vetoed by {'; '.join(outcome.reasons)}",
                kind="vetoed",
                step=request.step,
            )
        self.flush_metrics()
        draft = Draft(
            experiment=self.experiment,
            step=request.step,
            attempt=request.attempt,
            metrics=request.metrics,
            writer={**provenance(), **({"reason": request.reason} if request.reason else {})},
            parent=self._parent(request.attempt),
        )
        committed = self.workspace.repository.commit(request.snapshot, draft, base=self.base)
        self.base = committed.manifest
        checkpoint = committed.checkpoint(tags=request.tags)
        for tag in request.tags:
            self.workspace.references.set_tag(self.experiment, tag, checkpoint.id)
        self.workspace.index.tell(lambda catalog: catalog.put_checkpoint(checkpoint, committed.packs))
        self.workspace.audit("save", checkpoint.id, "done", experiment=self.experiment, step=request.step)
        _log.info(
            "saved step %d as %s: %d bytes, %d newly written",
            checkpoint.step, checkpoint.id, checkpoint.logical_bytes, checkpoint.written_bytes,
        )  # fmt: skip
        return checkpoint

    def _parent(self, attempt: Attempt) -> str | None:
        if self.base is None or self.base.attempt.lineage != attempt.lineage:
            return None
        return self.base.id

    def _follow_up(self, request: SaveRequest, checkpoint: Checkpoint) -> None:
        """Nothing here can make the save fail: it is durable, and the handle has said so."""
        try:
            self._fire(HookEvent.AFTER_SAVE, checkpoint, reason=request.reason)
            if self._is_best(checkpoint):
                self._fire(HookEvent.NEW_BEST, checkpoint)
            if self.retention:
                self.retain(checkpoint.attempt.lineage, protect=(checkpoint.id,))
        except CkptError as error:
            _log.error("step %d is saved, but what follows a save failed: %s", checkpoint.step, error)
            self.failures.append((checkpoint.step, error))

    def _is_best(self, checkpoint: Checkpoint) -> bool:
        if self.metric is None or self.metric not in checkpoint.metrics:
            return False
        lineage = self.workspace.index.lineage(self.experiment, checkpoint.attempt.lineage)
        return best_first(lineage, self.metric, self.mode)[0].id == checkpoint.id

    def _failed(self, request: SaveRequest, error: BaseException) -> None:
        _log.error("the save of step %d failed: %s", request.step, error)
        self.failures.append((request.step, error))
        self.workspace.audit("save", self.experiment, "failed", step=request.step, reason=str(error))
        self._fire(
            HookEvent.SAVE_FAILED, None, step=request.step, attempt=request.attempt, error=error, reason=request.reason
        )

    def _fire(self, event: HookEvent, checkpoint: Checkpoint | None, **facts: Any) -> Any:
        if checkpoint is not None:
            facts = {"step": checkpoint.step, "attempt": checkpoint.attempt, "metrics": checkpoint.metrics, **facts}
        return self.hooks.fire(HookContext(event, experiment=self.experiment, checkpoint=checkpoint, **facts))
