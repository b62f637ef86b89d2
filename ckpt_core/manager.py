"""The checkpoint manager: what a training program holds. It decides nothing by itself; it joins the parts."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, final

from ckpt_core import ids
from ckpt_core.backends import StorageBackend, as_backend
from ckpt_core.config import cores
from ckpt_core.configuration import plain_configuration
from ckpt_core.errors import CkptError, SaveFailedError, UsageError
from ckpt_core.format.compression import Compression
from ckpt_core.format.documents import Manifest
from ckpt_core.format.hashing import Algorithm
from ckpt_core.format.names import check_name, check_tag
from ckpt_core.format.signing import KeyFiles
from ckpt_core.hooks import BaseHook, HookContext, HookEvent
from ckpt_core.maintenance.parity import check_percent
from ckpt_core.model import Attempt, Checkpoint, Decision
from ckpt_core.pipeline.attempts import AttemptKeeper, Outcome, ending
from ckpt_core.pipeline.deferred import LazyTensors
from ckpt_core.pipeline.hooking import HookRecord, gather
from ckpt_core.pipeline.intake import Intake, check_count, check_step
from ckpt_core.pipeline.library import Library
from ckpt_core.pipeline.queue import OnBusy, SaveHandle, SaveQueue
from ckpt_core.pipeline.resolve import Mode
from ckpt_core.pipeline.retaining import Retention
from ckpt_core.pipeline.saving import Saver, SaveRequest
from ckpt_core.pipeline.sole import SoleWriter, refuse_beside
from ckpt_core.pipeline.trust import keys_of
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.policies import RetentionPolicy, SavePolicy
from ckpt_core.repository import check_options
from ckpt_core.stores import Store, open_store
from ckpt_core.tracker.log import MetricLog, as_metrics, check_seconds, fit_for_best
from ckpt_core.tree import flatten, registry

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from ckpt_core.tracker.experiments import ExperimentTracker

__all__ = ["CheckpointManager", "OnSaveError"]

_log = logging.getLogger("ckpt_core.manager")

OnSaveError = Literal["report", "raise", "stop"]
"""What a failed save does besides being logged and told at the end: nothing (`report`); raise
SaveFailedError when training is over (`raise`), or at the next safe point (`stop`)."""


@final
class CheckpointManager(Library):
    """Saves, finds and loads the checkpoints of one experiment in one store.

    `root`: a path, a URL (`file://`, `memory://`) or a Store. `experiment`: its name, up to 255 characters.
    `catalog`: a SQLAlchemy URL; left out, SQLite inside the store. `backend`: what makes files of a state: the engine
    itself (`native`), which writes what has changed and reads piece by piece, or a StorageBackend by name or as it
    is. `metric` and `mode` say what *best* is.
    `save_policy` asks for saves at training events (adapters and sessions fire them); `retention` are
    policies of which any one keeps a checkpoint, and without which everything is kept; `hooks` react to
    events, and so do those of the `ckpt.toml` that `hooks_file` names, or else of one that is found (False: none).
    At most `max_pending` saves wait to be written; `on_busy` says what a further one does: `wait`,
    `skip`, or `replace` one not begun. At most `staged_bytes` of memory hold copies of states: training waits
    for a save whose copy would not fit. `save_threads` hash while training runs (half the cores, 4 at most);
    they give way to it. `chunk_bytes` (8 MiB) and `digest` (`"sha256"`) are what a new store is made with, and
    hold for all of it. `compression`: `"zstd"` has what this manager writes compressed where that pays, which
    plain safetensors cannot read. `parity`: percent of a pack that can be healed where its bytes are lost; its
    sidecar takes as much room. `mirror`: a path, a URL or a Store that follows this one, and is read where this
    one fails; the store remembers it. `exclusive`: nobody else may write to the experiment while this manager is
    open. `on_save_error`: a failed save never stops training and does not show in the exit code (`report`), unless
    it is to be raised at the end (`raise`) or at once (`stop`). `signing_key`: a private key, or its file, that signs
    each checkpoint. `trusted_keys`: public keys, or files of them, one of which must have signed what is to be loaded.
    `config`: what the training was configured with, a dict, a dataclass or a namespace; it is recorded with the
    attempt. What is logged is durable `flush_seconds` later at the latest (None: at the next commit).

    Use it in a `with` block or call `close`, which waits for pending saves. Thread-safe, but for `save`,
    which is for one thread at a time; a forked child must open a manager of its own. Raises UsageError,
    StoreError (of kind `locked` where it cannot be exclusive), FormatError, CorruptionError.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | Store,
        *,
        experiment: str,
        catalog: str | None = None,
        backend: str | StorageBackend = "native",
        metric: str | None = None,
        mode: Mode = "min",
        save_policy: SavePolicy | None = None,
        retention: Sequence[RetentionPolicy] = (),
        hooks: Iterable[BaseHook] = (),
        hooks_file: str | os.PathLike[str] | Literal[False] | None = None,
        max_pending: int = 1,
        on_busy: OnBusy = "wait",
        staged_bytes: int | None = None,
        save_threads: int | None = None,
        chunk_bytes: int | None = None,
        digest: Algorithm | None = None,
        compression: Compression | None = None,
        parity: int = 0,
        mirror: str | os.PathLike[str] | Store | None = None,
        exclusive: bool = False,
        on_save_error: OnSaveError = "report",
        signing_key: str | os.PathLike[str] | Ed25519PrivateKey | None = None,
        trusted_keys: KeyFiles | None = None,
        config: Any = None,
        flush_seconds: float | None = 60.0,
    ) -> None:
        # First what needs no store: a call that means nothing leaves no folder behind.
        check_name(experiment, "an experiment's name")
        Retention.check(retention, metric, mode)
        if on_save_error not in ("report", "raise", "stop"):
            raise UsageError(
                f"on_save_error={on_save_error!r} must be 'report', 'raise' or 'stop'", kind="option"
            )
        threads = check_count(save_threads, "save_threads") or max(1, min(4, cores() // 2))
        staged_bytes = check_count(staged_bytes, "staged_bytes")
        check_options(chunk_bytes, digest, compression)
        check_percent(parity)
        made_by = as_backend(backend)
        own, trusted = keys_of(signing_key, trusted_keys)
        configuration = plain_configuration(config)
        check_seconds(flush_seconds)
        self._queue = SaveQueue(max_pending, on_busy)
        store = open_store(root)
        manager = gather(hooks, store, hooks_file, save_policy)
        workspace = Workspace.open(
            store, catalog=catalog, create=True, chunk_bytes=chunk_bytes, digest=digest, mirror=mirror
        )
        workspace.index.connect()
        super().__init__(workspace, experiment, manager, metric, mode, made_by)
        self.signer, workspace.repository.trusted = own, trusted
        try:
            self._sole = SoleWriter(workspace.repository, experiment) if exclusive else None
        except BaseException:
            workspace.close()
            raise
        self.save_policy = save_policy
        self._keeper = AttemptKeeper(workspace, experiment, configuration, weakref.WeakMethod(self.stats))
        self._metrics = MetricLog(workspace, experiment, seconds=flush_seconds, settle=self._keeper.settle)
        self._retention = Retention(workspace, experiment, manager, retention, metric, mode)
        self._saver = Saver(
            workspace, experiment, manager, self._metrics.flush, self._is_best, self._retention.apply,
            compression=compression, backend=made_by, sign=own, parity=parity,
            approve=self._sole.check if self._sole else None,
            begun=lambda: self._record.note(self._attempt, "begun"),
        )  # fmt: skip
        self._record = HookRecord(workspace, experiment, manager)
        self._intake = Intake(self._queue, self._saver, threads=threads, staged_bytes=staged_bytes)
        self._lock = threading.RLock()
        self._attempt: Attempt | None = None
        self._last_step: int | None = None
        self._closed = False
        self.on_save_error: OnSaveError = on_save_error
        self._raised = 0
        self._process = os.getpid()
        self._record.serve(self, self._sole)
        if self._sole is not None:  # also of a manager that nobody closed
            weakref.finalize(self, self._sole.close)
        reference = weakref.ref(self)
        self._at_exit = lambda: _close_at_exit(reference)
        atexit.register(self._at_exit)

    # -- attempts ---------------------------------------------------------------------------------

    @property
    def attempt(self) -> Attempt:
        """This process's attempt. Begun at the first save or metric, if not before: it then continues the
        lineage of what this manager loaded, or starts a new one."""
        with self._lock:
            return self._attempt or self.begin_attempt(self.loaded)

    def begin_attempt(self, resumed: Checkpoint | None = None) -> Attempt:
        """Begins an attempt: the continuation of `resumed`, or (None) a new lineage that starts from nothing.

        A checkpoint of another experiment begins a new lineage here, which remembers where it came from.
        Waits for pending saves first. Raises StoreError (kind `locked`) where another manager writes to the
        experiment and is `exclusive`; UsageError (kind `key`) where it trusts keys and has none to sign with.
        """
        self._refuse_child()
        if self.workspace.repository.trusted is not None and self.signer is None:
            raise UsageError(
                "with trusted_keys= alone, what this manager saves it would refuse to load: give signing_key=, too",
                kind="key",
            )
        self._queue.wait()
        if self._sole is None:
            refuse_beside(self.workspace.repository, self.experiment)
        with self._lock:
            newest = self.workspace.index.newest(self.experiment)
            own = resumed if resumed is not None and resumed.experiment == self.experiment else None
            number = 1 + max(c.attempt.number if c is not None else 0 for c in (newest, own))
            name = ids.new_ulid()
            lineage = own.attempt.lineage if own is not None else name
            came_from = (None, None) if resumed is None else (resumed.id, resumed.step)
            self._saver.begin(self._manifest_of(resumed), own.id if own is not None else None)
            self._last_step = own.step if own is not None else None
            self._attempt = Attempt(number, name, lineage, *came_from)
            self._keeper.begin(self._attempt, resumed.experiment if resumed is not None else None)
            return self._attempt

    def end_attempt(self, outcome: Outcome = "finished", reason: str = "") -> None:
        """Records how the attempt ended: `finished`, `failed` or `preempted`. What it says first counts. A `with` block
        and `close` do so by themselves, and adapters do. Raises UsageError for any other word, and nothing else."""
        self._keeper.end(outcome, reason)

    def continue_attempt(self) -> None:
        """Takes back what `end_attempt` recorded: training goes on after all."""
        self._keeper.goes_on()

    @property
    def tracker(self) -> ExperimentTracker:
        """What there is to know of the experiments of this store."""
        from ckpt_core.tracker.experiments import ExperimentTracker

        return ExperimentTracker(self.workspace, own=self.experiment)

    # -- saving -----------------------------------------------------------------------------------

    def save(
        self,
        state: Any,
        *,
        step: int,
        metrics: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        wait: bool = False,
        reason: str | None = None,
        lazy: LazyTensors | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> SaveHandle:
        """Saves a state: dicts, lists, tuples, plain values and tensors of any registered framework.

        Returns as soon as the tensors are copied to host memory; the handle's `result()` waits until the
        checkpoint is durable. With `wait`, nothing is copied and the call returns when it is durable, or
        raises what went wrong. `lazy`, for adapters: the tensors that will not change for a while, and need not
        be copied before this returns. `progress` is told the bytes written and in all. A failed save never
        disappears: its handle, a SAVE_FAILED event, the log, the audit trail and `close` all tell it. What
        follows a save (tags, hooks, retention) cannot make it fail: what goes wrong there is in the log, and
        `close` tells it again.

        Raises UsageError (a step that goes backwards, a NaN for the metric of *best*, a call in a hook of
        another save), StateError (names the path of what cannot be saved). That a save was skipped, or came
        after `close`, is left to the handle unless `wait`.
        """
        self._refuse_child()
        attempt = self.attempt  # first: it may be the one that a resume begins
        request = SaveRequest(
            step=check_step(step, self._last_step),
            attempt=attempt,
            metrics=fit_for_best(as_metrics(metrics), self.metric, step),
            tags=tuple(check_tag(tag) for tag in ([tags] if isinstance(tags, str) else tags)),
            reason=reason,
            progress=progress,
        )
        flat = flatten(state, registry)
        self._last_step = request.step
        if wait:
            return self._intake.save_now(request, flat)
        with self.workspace.figures.timed("stall"):
            return self._intake.stage(request, flat, lambda: self._tell_staged(request), lazy)

    def log(self, metrics: Mapping[str, Any], *, step: int) -> None:
        """Adds to the metric series; NaN and infinities are allowed. Durable at the next commit or on close.

        Raises UsageError for what is no number, and after `close`.
        """
        self._refuse_child()
        if self._closed:
            raise UsageError(
                "the manager is closed and the metrics would be lost: log before close()", kind="closed"
            )
        self._metrics.add(self.attempt, metrics, step)

    def stats(self) -> dict[str, Any]:
        """How this manager has fared: `latencies` of saves, stalls, loads and opens (p50 and p99 in seconds), `bytes`,
        `cache` with hit rates, and `queues`: how many saves and metric values wait."""
        queues = {"saves": self._queue.pending, "metrics": self._metrics.stats().waiting}
        return {**self.workspace.figures.stats(), "queues": queues}

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until no save is pending, nor what follows one; False after `timeout` seconds."""
        return self._queue.wait(timeout)

    def plan_retention(self) -> list[Decision]:
        """What the retention policies would do to the current lineage, with reasons. Changes nothing."""
        newest = None if self._attempt else self.latest()
        attempt = self._attempt or (newest.attempt if newest else None)
        return self._retention.decisions(attempt.lineage) if attempt else []

    # -- the end ----------------------------------------------------------------------------------

    @property
    def failures(self) -> list[tuple[int, BaseException]]:
        """(step, error) of every save that failed so far."""
        return list(self._saver.failures)

    def raise_failures(self) -> None:
        """Raises SaveFailedError for the saves that failed since it last did; never where
        `on_save_error` is `report`."""
        failed = self._saver.failures[self._raised :]
        if self.on_save_error == "report" or not failed:
            return
        self._raised += len(failed)
        said = "; ".join(f"step {step}: {error}" for step, error in failed)
        raise SaveFailedError(
            f"{len(failed)} of the saves of {self.experiment} failed. What was saved before is untouched; mend "
            f"the cause and run the same command again to go on from there. {said}",
            steps=tuple(step for step, _ in failed),
        ) from failed[0][1]

    def close(self) -> None:
        """Waits for pending saves, flushes the metrics and tells again what failed. May be repeated.

        Raises UsageError in a hook of a save, which would wait for its own end; SaveFailedError as
        `raise_failures` does, when all else is done.
        """
        self._close(sys.exception())
        self.raise_failures()

    def _close(self, error: BaseException | None = None) -> None:
        if self._process != os.getpid():  # a forked child: what is pending is its parent's
            return
        if self._queue.inside:
            raise UsageError(
                "a hook of a save cannot close the manager: it would wait for itself", kind="nested"
            )
        self._queue.close()
        with self._lock:
            if self._closed:
                return
            lost = self._metrics.close()
            self._keeper.end(*ending(error))
            self._keeper.close()
            self.hooks.close()
            self._record.note(self._attempt, "ended")
            for step, error in self._saver.failures:
                _log.error("reminder: the save of step %d failed: %s", step, error)
            for step, error in self._saver.unfinished:
                _log.error(
                    "reminder: step %d is saved, but what follows a save was not all done: %s", step, error
                )
            if lost:
                _log.error("%d metric values could not be written and are lost", lost)
            self._intake.clear()
            if self._sole is not None:
                self._sole.close()
            self.workspace.close()
            self._closed = True
            atexit.unregister(self._at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(error)
        if error is None:  # whatever ended the block says more than the saves that it has had
            self.raise_failures()

    def __repr__(self) -> str:
        return f"<CheckpointManager {self.workspace.repository.store.url} experiment={self.experiment!r}>"

    # -- details ----------------------------------------------------------------------------------

    def _manifest_of(self, checkpoint: Checkpoint | None) -> Manifest | None:
        if checkpoint is None:
            return None
        try:
            return self.workspace.repository.read(checkpoint.key).manifest
        except CkptError as error:
            _log.warning("the first save will write everything anew: %s", error)
            return None

    def _is_best(self, checkpoint: Checkpoint) -> bool:
        if self.metric is None or self.metric not in checkpoint.metrics:
            return False
        lineage = checkpoint.attempt.lineage
        best = self.workspace.index.best(self.experiment, self.metric, self.mode, lineage)
        return best is not None and best.id == checkpoint.id

    def _tell_staged(self, request: SaveRequest) -> None:
        facts: dict[str, Any] = {"step": request.step, "attempt": request.attempt, "metrics": request.metrics}
        self.hooks.fire(
            HookContext(HookEvent.AFTER_STAGE, experiment=self.experiment, reason=request.reason, **facts)
        )

    def _refuse_child(self) -> None:
        if self._process != os.getpid():
            raise UsageError(
                "this manager belongs to the process that this one was forked from: open another one here",
                kind="forked",
            )


def _close_at_exit(reference: weakref.ref[CheckpointManager]) -> None:
    manager = reference()
    if manager is not None:
        manager._close(getattr(sys, "last_value", None))  # the exit code is settled by now
