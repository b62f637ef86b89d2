"""What happens to a staged state: hooks, commit, catalog, hooks again. What is deleted then is `retaining`'s.

Up to the commit anything may go wrong, and then there is no checkpoint and the handle says why. After it
nothing may: the checkpoint stands, and what fails is told apart from a failed save.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ckpt_core.backends import StorageBackend
from ckpt_core.config import provenance
from ckpt_core.errors import CkptError, SaveNotDoneError
from ckpt_core.format.documents import Manifest
from ckpt_core.format.signing import SigningKey
from ckpt_core.hooks import HookContext, HookEvent, HookManager, HookOutcome
from ckpt_core.maintenance.parity import protect_all
from ckpt_core.maintenance.rewriting import rebased
from ckpt_core.model import Attempt, Checkpoint, Snapshot
from ckpt_core.pipeline.filed import files_of
from ckpt_core.pipeline.queue import SaveHandle
from ckpt_core.pipeline.staging import StagedArrays
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.repository import Committed, Draft

__all__ = ["SaveRequest", "Saver"]

_log = logging.getLogger("ckpt_core.save")
_STALE_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class SaveRequest:
    """One save, as it was asked for."""

    step: int
    attempt: Attempt
    metrics: dict[str, float]
    tags: tuple[str, ...]
    reason: str | None
    threads: int | None = None
    """How many threads hash; as many as there are cores where nothing else has to run."""
    progress: Callable[[int, int], None] | None = None
    """Told the bytes written, and how many there are in all."""


@dataclass
class Saver:
    """Makes checkpoints of one experiment. Called by one thread at a time.

    `flush_metrics` makes the metric series durable; `is_best` and `retain` are asked about each new
    checkpoint. `approve` is called just before each commit and prevents it by raising.
    """

    workspace: Workspace
    experiment: str
    hooks: HookManager
    flush_metrics: Callable[[], object]
    is_best: Callable[[Checkpoint], bool]
    retain: Callable[[Checkpoint], object]
    compression: str | None = None
    backend: StorageBackend | None = None
    sign: SigningKey | None = None
    approve: Callable[[], None] | None = None
    begun: Callable[[], object] = lambda: None
    """Called in each attempt once, when its first checkpoint is there."""
    parity: int = 0
    """Percent of a pack that can be healed; its sidecar is written when the save is durable."""
    failures: list[tuple[int, BaseException]] = field(default_factory=list)
    """(step, error) of each save that failed: there is no checkpoint."""
    unfinished: list[tuple[int, BaseException]] = field(default_factory=list)
    """(step, error) where the checkpoint stands, but something that follows a save failed."""
    _base: Manifest | None = None
    _parent: str | None = None
    _untold: bool = True
    _swept: bool = False
    _committed: Committed | None = None
    _protected: set[str] = field(default_factory=set)

    def begin(self, base: Manifest | None, parent: str | None) -> None:
        """An attempt begins: the chunks of `base`, which may be anybody's, need not be written again."""
        self._base, self._parent, self._untold = base, parent, True

    def run(
        self,
        request: SaveRequest,
        snapshot: Snapshot,
        handle: SaveHandle,
        ready: Callable[[], object] | None = None,
    ) -> None:
        """Makes the checkpoint and settles the handle. Raises only what is no Exception.

        `ready` returns when the snapshot is whole, or raises why it never will be.
        """
        try:
            if ready is not None:
                ready()
            with self.workspace.figures.timed("save"):
                checkpoint = self._save(request, snapshot)
        except SaveNotDoneError as error:
            _log.warning("%s", error)
            self.workspace.audit("save", self.experiment, error.kind, step=request.step, reason=str(error))
            handle.fail(error)
            return
        except BaseException as error:
            self.fail(request, error, handle)
            if not isinstance(error, Exception):
                raise
            return
        self.workspace.figures.add("saved", checkpoint.logical_bytes)
        self.workspace.figures.add("written", checkpoint.written_bytes)
        handle.succeed(checkpoint)
        self._follow_up(request, checkpoint)

    def fail(self, request: SaveRequest, error: BaseException, handle: SaveHandle) -> None:
        """Tells everybody that there is no checkpoint: log, audit trail, SAVE_FAILED, and last the handle."""
        try:
            _log.error("the save of step %d failed: %s", request.step, str(error) or type(error).__name__)
            self.failures.append((request.step, error))
            self.workspace.audit("save", self.experiment, "failed", step=request.step, reason=str(error))
            self._fire(HookEvent.SAVE_FAILED, request, error=error)
        except CkptError as second:  # a hook that raises has its say in the log; the save's own error stays
            _log.error("and what follows a failed save failed too: %s", second)
        finally:
            handle.fail(error)

    def _save(self, request: SaveRequest, snapshot: Snapshot) -> Checkpoint:
        outcome = self._fire(HookEvent.BEFORE_SAVE, request, tensors=StagedArrays(snapshot))
        if outcome.vetoed:
            raise SaveNotDoneError(
                f"the save of step {request.step} was vetoed by {'; '.join(outcome.reasons)}",
                kind="vetoed",
                step=request.step,
            )
        self.flush_metrics()
        committed = self._commit_as_asked(request, snapshot)
        self._base, self._parent, self._committed = committed.manifest, committed.manifest.id, committed
        checkpoint = committed.checkpoint(tags=self._tagged(request, committed.manifest.id))
        self.workspace.index.tell(lambda catalog: catalog.put_checkpoint(checkpoint, committed.packs))
        why = {"reason": request.reason} if request.reason else {}
        self.workspace.audit(
            "save", checkpoint.id, "done", experiment=self.experiment, step=request.step, **why
        )
        _log.info(
            "saved step %d as %s: %d bytes, %d newly written",
            checkpoint.step, checkpoint.id, checkpoint.logical_bytes, checkpoint.written_bytes,
        )  # fmt: skip
        return checkpoint

    def _commit_as_asked(self, request: SaveRequest, snapshot: Snapshot) -> Committed:
        """Commits the snapshot itself, or the files that a storage backend makes of it."""
        if self.backend is None:
            return self._commit(request, snapshot)
        with files_of(self.backend, snapshot, self.workspace.repository) as (files, facts):
            return self._commit(request, files, facts)

    def _commit(
        self, request: SaveRequest, snapshot: Snapshot, facts: Mapping[str, Any] | None = None
    ) -> Committed:
        repository = self.workspace.repository
        draft = Draft(
            experiment=self.experiment,
            step=request.step,
            attempt=request.attempt,
            metrics=request.metrics,
            writer={
                **self._provenance,
                **({"reason": request.reason} if request.reason else {}),
                **(facts or {}),
            },
            parent=self._parent,
            sign=self.sign,
        )
        base = rebased(repository, self._base) if self._base is not None else None
        return repository.commit(
            snapshot,
            draft,
            base=base,
            approve=self.approve,
            compression=self.compression,
            threads=request.threads,
            progress=request.progress,
        )

    @cached_property
    def _provenance(self) -> dict[str, Any]:
        # Once: what is checked out later is not the code that runs.
        return provenance()

    def _tagged(self, request: SaveRequest, checkpoint: str) -> tuple[str, ...]:
        """Sets the tags that the save asked for; returns those that were set."""
        done = []
        for tag in sorted(set(request.tags)):
            try:
                self.workspace.references.set_tag(self.experiment, tag, checkpoint)
                self.workspace.marked += 1
                done.append(tag)
            except CkptError as error:
                self._note(request.step, f"it could not be tagged {tag!r}", error)
        return tuple(done)

    def _follow_up(self, request: SaveRequest, checkpoint: Checkpoint) -> None:
        """Each part for itself: a hook that raises must not keep old checkpoints from being deleted."""
        parts: tuple[tuple[str, Callable[[], object]], ...] = (
            ("a hook on AFTER_SAVE failed", lambda: self._fire(HookEvent.AFTER_SAVE, request, checkpoint)),
            ("NEW_BEST could not be told", lambda: self._tell_best(request, checkpoint)),
            ("its parity could not be written", self._protect),
            ("it could not be mirrored", self._follow),
            ("old checkpoints could not be deleted", lambda: self.retain(checkpoint)),
            ("which hooks are at work could not be written down", self._tell_begun),
            ("leftovers could not be swept", self._sweep),
        )
        for what, part in parts:
            try:
                part()
            except Exception as error:
                self._note(request.step, what, error)

    def _follow(self) -> None:
        if self.workspace.mirror is not None and self._committed is not None:
            self.workspace.mirror.follow(self._committed)

    def _protect(self) -> None:
        """Sidecars for the packs of the checkpoint just saved: its own, and older ones that have none yet."""
        if self.parity and self._base is not None:
            names = {pack.name for pack in self._base.packs}
            done = protect_all(self.workspace.repository, self.parity, sorted(names - self._protected))
            self._protected = names - set(done.damaged)

    def _tell_best(self, request: SaveRequest, checkpoint: Checkpoint) -> None:
        if self.is_best(checkpoint):
            self._fire(HookEvent.NEW_BEST, request, checkpoint)

    def _tell_begun(self) -> None:
        if self._untold:
            self._untold = False
            self.begun()

    def _sweep(self) -> None:
        """Once in a process, since it walks all of the store: what killed writers left behind."""
        if not self._swept:
            self._swept = True
            self.workspace.repository.store.sweep(_STALE_SECONDS)

    def _note(self, step: int, what: str, error: Exception) -> None:
        unexpected = None if isinstance(error, CkptError) else error
        _log.error("step %d is saved, but %s: %s", step, what, error, exc_info=unexpected)
        self.unfinished.append((step, error))

    def _fire(
        self, event: HookEvent, request: SaveRequest, checkpoint: Checkpoint | None = None, **facts: Any
    ) -> HookOutcome:
        context = HookContext(
            event,
            experiment=self.experiment,
            step=request.step,
            attempt=request.attempt,
            checkpoint=checkpoint,
            metrics=request.metrics,
            reason=request.reason,
            **facts,
        )
        return self.hooks.fire(context)
