"""What Orbax does, as events and records: told by the handlers of `orbax_v0.py` and `orbax_v1.py`.

The files are Orbax's own. What its users hold, and how it is given to Orbax, is `orbax_handler.py`'s.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, final

import jax
from etils import epath

from ckpt_core import (
    BaseHook,
    Checkpoint,
    CheckpointManager,
    CorruptionError,
    HookContext,
    HookEvent,
    HookManager,
)
from ckpt_core.errors import HookError, StoreError, UsageError
from ckpt_core.hooks import HookOutcome
from ckpt_jax import sidecar
from ckpt_jax.commits import Commit, Commits, item_of, place_of, step_of
from ckpt_jax.ledger import Ledger

__all__ = ["Watch"]

_log = logging.getLogger("ckpt_core.orbax")

_CHANGING = frozenset({"_CHECKPOINT_METADATA"})
"""What Orbax writes once more when all is sealed: the record in the catalog has its digest."""


@final
class Watch:
    """Watches over what Orbax saves and restores.

    `manager` holds a record of each checkpoint; `hooks` hear the events; `verify`: whether every file of an
    item is checked before it is restored. With several processes the first one records.
    """

    def __init__(self, manager: CheckpointManager, hooks: HookManager, *, verify: bool) -> None:
        self.manager = manager
        self.hooks = hooks
        self.failures: list[tuple[int, BaseException]] = []
        self.is_primary = jax.process_index() == 0
        self._verify = verify
        self._ledger = Ledger(manager)
        self._commits = Commits(self._committed)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ckpt-orbax")
        self._working: int | None = None
        self._committing: Commit | None = None
        self._last: Future[None] | None = None
        self._roots: set[epath.Path] = set()
        manager.hooks.register_hook(_Forward(self))

    def wait(self) -> None:
        """Waits until what Orbax has committed so far is recorded and its hooks have run; drops the records of
        what has been deleted since."""
        self._settle()
        for root in list(self._roots):
            self._forget_deleted(root)

    def close(self) -> None:
        """Records what is left, and tells what was never committed."""
        for commit in self._commits.give_up():
            self._failed(commit, StoreError(f"{commit.final} was never committed", kind="lost"))
        self._settle()
        self._worker.shutdown()

    # -- told by handlers: saves ------------------------------------------------------------------

    def saving(self, folder: epath.Path) -> None:
        """Orbax is about to write an item."""
        if not self.is_primary:  # what is committed is told to the first process only
            return
        self._commits.settle()
        commit, begun = self._commits.begin(folder)
        if begun:
            self._meet(commit.final.parent)
            outcome = self._fire(HookEvent.BEFORE_SAVE, commit.step, data={"path": str(commit.final)})
            if outcome.vetoed:
                _log.warning(
                    "step %d is saved although %s: only Orbax's save_decision_policy can keep it from that",
                    commit.step, "; ".join(outcome.reasons),
                )  # fmt: skip

    def staged(self, folder: epath.Path) -> None:
        """The arrays of an item have been copied, and training goes on."""
        if not self.is_primary:
            return
        commit, _ = self._commits.begin(folder)
        facts = {"path": str(commit.final), "item": item_of(commit, folder)}
        self._fire(HookEvent.AFTER_STAGE, commit.step, data=facts)

    def written(self, folder: epath.Path) -> None:
        """Everything of an item is written, and will be committed: seal it. On the first process only."""
        self._commits.seal(folder, sidecar.seal(folder, but=_CHANGING))

    def failed(self, folder: epath.Path, error: BaseException) -> None:
        """The save of an item has failed."""
        commit = self._commits.fail(folder)
        if commit is not None:
            self._failed(commit, error)

    # -- told by handlers: restores ---------------------------------------------------------------

    def loading(self, folder: epath.Path) -> Checkpoint | None:
        """An item is about to be restored: check it. The record of its checkpoint, if there is one.

        Raises CorruptionError; UsageError where a hook refuses.
        """
        root, item = place_of(folder)
        self._meet(root.parent)
        self._settle()
        step, found = step_of(root), None
        checkpoint = self._ledger.at(root, step)
        try:
            sealed = sidecar.unseal(folder)
            if sealed is None:
                self._note_unsealed(folder, checkpoint)
            else:
                found = self._ledger.find(step, item, sealed.digest)
                checkpoint = found[0] if found else checkpoint
            outcome = self._fire(HookEvent.BEFORE_LOAD, step, checkpoint, data={"path": str(folder)})
            if outcome.vetoed:
                raise UsageError(f"the restore was vetoed by {'; '.join(outcome.reasons)}", kind="vetoed")
            if sealed is not None and self._verify:
                sidecar.verify(folder, sealed.files)
                if found is not None:
                    sidecar.verify(root, found[1].files_of(item))
        except CorruptionError as error:
            error.facts.setdefault("step", step)
            self._fire(HookEvent.CORRUPTION_FOUND, step, checkpoint, error=error)
            self.load_failed(folder, checkpoint, error)
            raise
        return checkpoint

    def loaded(self, folder: epath.Path, checkpoint: Checkpoint | None) -> None:
        """An item has been restored."""
        if checkpoint is not None:
            self._ledger.resumed(checkpoint)
        self._fire(HookEvent.AFTER_LOAD, step_of(place_of(folder)[0]), checkpoint, data={"path": str(folder)})

    def load_failed(self, folder: epath.Path, checkpoint: Checkpoint | None, error: BaseException) -> None:
        """An item could not be restored."""
        self._fire(HookEvent.LOAD_FAILED, step_of(place_of(folder)[0]), checkpoint, error=error)

    def _note_unsealed(self, folder: epath.Path, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            _log.warning("%s has no digests, as it was saved by Orbax alone: restored unchecked", folder)
            return
        raise CorruptionError(
            f"{folder / sidecar.NAME} is missing: the files beside it cannot be checked; restore another step",
            kind="missing",
            path=str(folder / sidecar.NAME),
        )

    # -- told by Preservation ---------------------------------------------------------------------

    def may_delete(self, checkpoint: Checkpoint) -> bool:
        """Asks the hooks on BEFORE_DELETE."""
        return not self._fire(HookEvent.BEFORE_DELETE, checkpoint.step, checkpoint, reason="retention").vetoed

    # -- the moment after -------------------------------------------------------------------------

    def _settle(self) -> None:
        self._commits.settle()
        last = self._last
        if last is not None and threading.get_ident() != self._working:
            last.result()

    def _meet(self, root: epath.Path) -> None:
        """Whatever was committed there and never recorded, as a process was killed in between, is recorded now."""
        if self.is_primary and root not in self._roots:
            self._roots.add(root)
            with contextlib.suppress(RuntimeError):  # closed; what is committed after that is told by itself
                self._last = self._worker.submit(self._adopt, root)

    def _adopt(self, root: epath.Path) -> None:
        try:
            for commit in self._ledger.unknown(root):
                _log.info("%s was committed, but is not in the catalog yet", commit.final)
                self._record(commit)
        except Exception as error:
            _log.error("what is in %s could not be looked at: %s", root, error)

    def _committed(self, commit: Commit) -> None:
        """Called by whoever notices; what follows takes time, and must not keep Orbax."""
        try:
            self._last = self._worker.submit(self._record, commit)
        except RuntimeError:
            _log.error("step %d was committed after the watch was closed: close the watch last", commit.step)

    def _record(self, commit: Commit) -> None:
        self._working, self._committing = threading.get_ident(), commit
        try:
            if self.is_primary:
                self._ledger.write(commit)
                self._forget_deleted(commit.final.parent)
        except Exception as error:
            _log.error("step %d is committed, but could not be recorded: %s", commit.step, error)
            self.failures.append((commit.step, error))
        finally:
            self._working = self._committing = None

    def _forget_deleted(self, root: epath.Path) -> None:
        """Orbax deletes what its policies, or its users, let go: the records follow."""
        if not root.exists():  # not deleted, but out of reach
            return
        gone = [checkpoint for checkpoint, path in self._ledger.under(root) if not path.exists()]
        for checkpoint in self._ledger.forget(gone):
            self._fire(HookEvent.AFTER_DELETE, checkpoint.step, checkpoint)

    def _failed(self, commit: Commit, error: BaseException) -> None:
        _log.error("the save of step %d failed: %s", commit.step, error)
        self.failures.append((commit.step, error))
        self._fire(HookEvent.SAVE_FAILED, commit.step, error=error, data={"path": str(commit.final)})

    def forward(self, context: HookContext) -> None:
        """An event of the record's own save, which is the last part of the checkpoint's."""
        commit = self._committing
        path = {"path": str(commit.final)} if commit is not None else {}
        self._fire(context.event, context.step or 0, context.checkpoint, metrics=context.metrics, data=path)

    def _fire(
        self, event: HookEvent, step: int, checkpoint: Checkpoint | None = None, **facts: Any
    ) -> HookOutcome:
        if checkpoint is not None:
            facts = {"attempt": checkpoint.attempt, "metrics": checkpoint.metrics, **facts}
        if not self.is_primary:
            return HookOutcome()
        context = HookContext(
            event, experiment=self.manager.experiment, step=step, checkpoint=checkpoint, **facts
        )
        try:
            return self.hooks.fire(context)
        except HookError as error:
            if jax.process_count() == 1:
                raise
            # Raised on one process only, it would have the others wait for this one until they give up.
            _log.error("%s", error)
            return HookOutcome()


class _Forward(BaseHook):
    """Passes on what happens to a record when it is saved: then the checkpoint is there for everybody."""

    events = (HookEvent.AFTER_SAVE, HookEvent.NEW_BEST)

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def execute(self, context: HookContext) -> None:
        self._watch.forward(context)
