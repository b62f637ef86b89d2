"""Loading the checkpoint that was asked for, or else the next one that verifies, and saying so loudly."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ckpt_core.backends import StorageBackend
from ckpt_core.errors import (
    UNREADABLE,
    CkptError,
    CorruptionError,
    NotFoundError,
    SignatureError,
    StoreError,
    UsageError,
)
from ckpt_core.hooks import HookContext, HookEvent, HookManager, HookOutcome
from ckpt_core.model import Checkpoint
from ckpt_core.pipeline.loading import load_state
from ckpt_core.pipeline.trust import trusted_manifest
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.repository import Verify
from ckpt_core.repository.layout import ManifestKey
from ckpt_core.tree import registry

__all__ = ["LoadRequest", "StateLoader"]

_log = logging.getLogger("ckpt_core.load")


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What is to be loaded, and how; see `CheckpointManager.load`."""

    like: Any = None
    include: str | Sequence[str] | None = None
    verify: Verify = "full"
    framework: str | None = None


class StateLoader:
    """Loads states from one workspace, with the events around it."""

    def __init__(
        self, workspace: Workspace, hooks: HookManager, backend: StorageBackend | None = None
    ) -> None:
        self._workspace = workspace
        self._hooks = hooks
        self._backend = backend

    def load(
        self, wanted: Checkpoint, others: Iterable[Checkpoint], request: LoadRequest
    ) -> tuple[Checkpoint, Any]:
        """The checkpoint wanted, or else the first of the others that verifies, and its state.

        Raises the error of the first where none can be loaded (NotFoundError where it was forgotten
        meanwhile), and whatever is not damage.
        """
        first: CkptError | None = None
        tried = 0
        for checkpoint in chain([wanted], others):
            if first is not None:
                _log.error(
                    "FALLING BACK to step %d (%s): what was asked for cannot be loaded",
                    checkpoint.step,
                    checkpoint.id,
                )
            try:
                state = self._load(checkpoint, request)
            except CkptError as error:
                if not self._passes_over(checkpoint, error):
                    raise
                first = first or error
                tried += 1
                continue
            self._fire(HookEvent.AFTER_LOAD, checkpoint, data={"fallback": first is not None})
            return checkpoint, state
        assert first is not None, "there is always one that is wanted"
        if tried > 1:
            first.add_note(f"none of the {tried - 1} checkpoints to fall back to could be loaded either")
        raise first

    def pass_over(self, damaged: Sequence[tuple[ManifestKey, CkptError]], *, fallback: bool) -> None:
        """Tells of manifests that nobody can read and that are newer than what will be loaded.

        Raises CorruptionError where there is to be no fallback.
        """
        for parsed, error in damaged:
            _log.error("the checkpoint of step %d (%s) cannot be loaded: %s", parsed.step, parsed.id, error)
            context = HookContext(
                HookEvent.CORRUPTION_FOUND, step=parsed.step, error=error, data={"key": parsed.key}
            )
            self._hooks.fire(context)
        if damaged and not fallback:
            raise damaged[-1][1]

    def _load(self, checkpoint: Checkpoint, request: LoadRequest) -> Any:
        outcome = self._fire(HookEvent.BEFORE_LOAD, checkpoint)
        if outcome.vetoed:
            raise UsageError(f"the load was vetoed by {'; '.join(outcome.reasons)}", kind="vetoed")
        repository = self._workspace.repository
        try:
            return load_state(
                repository,
                trusted_manifest(repository, checkpoint, request.verify),
                registry,
                like=request.like,
                include=request.include,
                verify=request.verify,
                framework=request.framework,
                backend=self._backend,
            )
        except CkptError as error:
            self._fire(HookEvent.LOAD_FAILED, checkpoint, error=error)
            raise

    def _passes_over(self, checkpoint: Checkpoint, error: CkptError) -> bool:
        """Whether another checkpoint may be loaded in place of this one; if it is damaged, that is told."""
        if isinstance(error, StoreError):
            damage = error.kind in UNREADABLE
        else:
            damage = isinstance(error, (CorruptionError, SignatureError))
        if not damage and not (
            isinstance(error, NotFoundError) and error.kind in ("checkpoint", "forgotten")
        ):
            return False
        if not self._workspace.repository.store.exists(checkpoint.key):
            _log.warning("checkpoint %s (step %d) was forgotten meanwhile", checkpoint.id, checkpoint.step)
            return True
        _log.error("checkpoint %s (step %d) cannot be loaded: %s", checkpoint.id, checkpoint.step, error)
        self._fire(HookEvent.CORRUPTION_FOUND, checkpoint, error=error)
        self._workspace.index.tell(
            lambda catalog: catalog.record_check(checkpoint.id, "load", "damaged", {"error": str(error)})
        )
        return damage

    def _fire(self, event: HookEvent, checkpoint: Checkpoint, **facts: Any) -> HookOutcome:
        context = HookContext(
            event,
            experiment=checkpoint.experiment,
            step=checkpoint.step,
            attempt=checkpoint.attempt,
            checkpoint=checkpoint,
            metrics=checkpoint.metrics,
            **facts,
        )
        return self._hooks.fire(context)
