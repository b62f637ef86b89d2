"""The checkpoint manager: what a training program holds. It decides nothing by itself; it joins the parts."""

from __future__ import annotations

import atexit
import logging
import math
import operator
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from ckpt_core import clock, ids
from ckpt_core.errors import CkptError, CorruptionError, NotFoundError, SaveNotDoneError, UsageError
from ckpt_core.format.names import check_name
from ckpt_core.hooks import BaseHook, HookContext, HookEvent, HookManager
from ckpt_core.maintenance.prune import Pruned, PrunePlan
from ckpt_core.maintenance.verify import Progress, VerifyReport
from ckpt_core.model import Attempt, Checkpoint, Decision
from ckpt_core.pipeline import staging
from ckpt_core.pipeline.loading import load_state
from ckpt_core.pipeline.opened import CheckpointReader
from ckpt_core.pipeline.queue import OnBusy, SaveHandle, SaveQueue
from ckpt_core.pipeline.resolve import Mode, best_first, candidates
from ckpt_core.pipeline.saving import Saver, SaveRequest
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.policies import RetentionContext, RetentionPolicy, SavePolicy, SavePolicyHook, decide
from ckpt_core.repository import Verify
from ckpt_core.stores import Store
from ckpt_core.tracker import MetricLog, as_metrics
from ckpt_core.tree import flatten, registry

__all__ = ["CheckpointManager"]

_log = logging.getLogger("ckpt_core.manager")


class CheckpointManager:
    """Saves, finds and loads the checkpoints of one experiment in one store.

    `root`: a path, a URL (`file://`, `memory://`) or a Store. `experiment`: its name, up to 255 characters.
    `catalog`: a SQLAlchemy URL; left out, SQLite inside the store. `metric` and `mode` say what *best* is.
    `save_policy` asks for saves at training events (adapters and sessions fire them); `retention` are
    policies of which any one keeps a checkpoint, and without which everything is kept; `hooks` react to
    events. At most `max_pending` saves wait to be written; `on_busy` says what a further one does: `wait`,
    `skip`, or `replace` one not begun.

    Use it in a `with` block or call `close`, which waits for pending saves. Thread-safe, but for `save`,
    which is for one thread at a time. Raises UsageError, StoreError, FormatError, CorruptionError.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | Store,
        *,
        experiment: str,
        catalog: str | None = None,
        metric: str | None = None,
        mode: Mode = "min",
        save_policy: SavePolicy | None = None,
        retention: Sequence[RetentionPolicy] = (),
        hooks: Iterable[BaseHook] = (),
        max_pending: int = 1,
        on_busy: OnBusy = "wait",
    ) -> None:
        self.experiment = check_name(experiment, "an experiment's name")
        self.metric, self.mode = metric, mode
        self._queue = SaveQueue(max_pending, on_busy)
        decide(tuple(retention), (), RetentionContext(clock.now(), metric, mode))  # a wrong policy is told now
        self.hooks = HookManager(hooks)
        self.workspace = Workspace.open(root, catalog=catalog, create=True)
        self.save_policy = save_policy
        if save_policy is not None:
            self.hooks.register_hook(SavePolicyHook(save_policy))
        self._metrics = MetricLog(self.workspace, experiment)
        self._saver = Saver(
            self.workspace, experiment, self.hooks, metric, mode, tuple(retention), self._metrics.flush
        )
        self._arenas = staging.ArenaPool()
        self._attempt: Attempt | None = None
        self._last_step: int | None = None
        self.loaded: Checkpoint | None = None
        self._closed = False
        reference = weakref.ref(self)
        self._at_exit = lambda: _close_at_exit(reference)
        atexit.register(self._at_exit)

    # -- attempts ---------------------------------------------------------------------------------

    @property
    def attempt(self) -> Attempt:
        """This process's attempt. Begun at the first save or metric, if not before: it then continues the
        lineage of what this manager loaded, or starts a new one."""
        return self._attempt or self.begin_attempt(self.loaded)

    def begin_attempt(self, resumed: Checkpoint | None = None) -> Attempt:
        """Begins an attempt: the continuation of `resumed`, or (None) a new lineage that starts from nothing."""
        newest = self.workspace.index.newest(self.experiment)
        number = 1 + max(newest.attempt.number if newest else 0, resumed.attempt.number if resumed else 0)
        own = ids.new_ulid()
        if resumed is None:
            self._attempt = Attempt(number, own, own)
            self._saver.base = None
        else:
            self._attempt = Attempt(number, own, resumed.attempt.lineage, resumed.id, resumed.step)
            self._saver.base = self.workspace.repository.read(resumed.key).manifest
        self._last_step = None
        return self._attempt

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
    ) -> SaveHandle:
        """Saves a state: dicts, lists, tuples, plain values and tensors of any registered framework.

        Returns as soon as the tensors are copied to host memory; the handle's `result()` waits until the
        checkpoint is durable. With `wait`, nothing is copied and the call returns when it is durable, or
        raises what went wrong. A failed save never disappears: its handle, a SAVE_FAILED event, the log,
        the audit trail and `close` all tell it.

        Raises UsageError (a step that goes backwards, a NaN for the metric of *best*), StateError (names
        the path of what cannot be saved); SaveNotDoneError of a skipped save is left to the handle.
        """
        attempt = self.attempt
        step = self._checked_step(step)
        values = self._check_metrics(metrics, step)
        names = tuple(check_name(tag, "a tag") for tag in ([tags] if isinstance(tags, str) else tags))
        flat = flatten(state, registry)
        handle = SaveHandle(step)
        if wait:
            self._queue.wait()
            self._last_step = step
            self._saver.run(SaveRequest(staging.borrow(flat), step, attempt, values, names, reason), handle)
            handle.result()
            return handle
        try:
            self._queue.reserve(step)
        except SaveNotDoneError as error:
            handle.fail(error)
            return handle
        arena = self._arenas.acquire()
        try:
            snapshot = staging.copy(flat, arena)
        except BaseException:
            self._arenas.release(arena)
            self._queue.cancel()
            raise
        self._last_step = step
        request = SaveRequest(snapshot, step, attempt, values, names, reason)
        self._queue.submit(handle, lambda h: self._saver.run(request, h), lambda: self._arenas.release(arena))
        self._fire(HookEvent.AFTER_STAGE, step=step, attempt=attempt, metrics=values, reason=reason)
        return handle

    def log(self, metrics: Mapping[str, Any], *, step: int) -> None:
        """Adds to the metric series; NaN and infinities are allowed. Durable at the next commit or on close."""
        self._metrics.add(self.attempt, metrics, step)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until no save is pending; False after `timeout` seconds."""
        return self._queue.wait(timeout)

    # -- finding and loading ----------------------------------------------------------------------

    def resolve(self, ref: str = "latest") -> Checkpoint:
        """The checkpoint that a reference means: `[experiment@]latest|best|step=N|tag|id prefix`.

        Raises NotFoundError, UsageError.
        """
        return self._candidates(ref)[0]

    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints of the experiment, from the oldest to the newest."""
        return self.workspace.index.checkpoints(self.experiment)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint of the newest attempt that saved; None where there is none."""
        return self.workspace.index.newest(self.experiment)

    def best(self) -> Checkpoint | None:
        """The best by the manager's metric in the newest lineage; None where none carries it."""
        newest = self.latest()
        if newest is None:
            return None
        try:
            lineage = self.workspace.index.lineage(self.experiment, newest.attempt.lineage)
            return best_first(lineage, self.metric, self.mode)[0]
        except NotFoundError:
            return None

    def load(
        self,
        ref: str = "latest",
        *,
        like: Any = None,
        include: str | Sequence[str] | None = None,
        verify: Verify = "full",
        fallback: bool = True,
        framework: str | None = None,
    ) -> Any:
        """The state of a checkpoint.

        `like`: a state into whose structure, dtypes and devices it is loaded, its tensors filled in place;
        without it come plain containers and tensors of the framework that saved them, or of `framework`.
        `include`: paths, subtrees or shell patterns to load, the rest is not read. `verify`: `full` checks
        every byte read and the headers of its packs, `lazy` every byte read, `off` none. Where `latest` or
        `best` is damaged, the next one that verifies is loaded and the log says so, unless `fallback` is
        off. `loaded` then tells which one it was.

        Raises NotFoundError, CorruptionError, StateMismatchError (names the paths), FormatError,
        MissingExtraError. After a CorruptionError the tensors of `like` may be partly overwritten.
        """
        choices = self._candidates(ref)
        for number, checkpoint in enumerate(choices):
            try:
                state = self._load_one(checkpoint, like, include, verify, framework)
            except (CorruptionError, NotFoundError) as error:
                self._damaged(checkpoint, error)
                if not fallback or number + 1 == len(choices):
                    raise
                following = choices[number + 1]
                _log.error(
                    "%s is damaged and was not loaded (%s); falling back to step %d (%s)",
                    checkpoint.id, error, following.step, following.id,
                )  # fmt: skip
                continue
            self.loaded = checkpoint
            self._fire(HookEvent.AFTER_LOAD, checkpoint=checkpoint, step=checkpoint.step)
            return state
        raise AssertionError("candidates are never empty")

    def open(
        self, ref: str = "latest", *, verify: Verify = "lazy", framework: str | None = None
    ) -> CheckpointReader:
        """A checkpoint for reading piece by piece: `reader["model/embed.weight"][1000:2000]`.

        Reads one manifest now, and later only the chunks asked for, each checked unless `verify` is `off`.
        """
        checkpoint = self.resolve(ref)
        manifest = self.workspace.repository.read(checkpoint.key).manifest
        return CheckpointReader(
            self.workspace.repository, manifest, checkpoint, registry, verify=verify, framework=framework
        )

    # -- marks, retention, maintenance ------------------------------------------------------------

    def tag(self, ref: str, tag: str) -> None:
        """Points a tag to a checkpoint, away from any other of the experiment."""
        self.workspace.tag(self.resolve(ref), tag)

    def untag(self, tag: str) -> None:
        """Removes a tag of the experiment."""
        self.workspace.untag(self.experiment, tag)

    def pin(self, ref: str) -> None:
        """Keeps a checkpoint from every retention policy."""
        self.workspace.pin(self.resolve(ref))

    def unpin(self, ref: str) -> None:
        """Leaves a checkpoint to the retention policies again."""
        self.workspace.unpin(self.resolve(ref))

    def plan_retention(self) -> list[Decision]:
        """What the retention policies would do to the current lineage, with reasons. Changes nothing."""
        newest = self.latest()
        lineage = self._attempt.lineage if self._attempt else newest.attempt.lineage if newest else ""
        return self._saver.decisions(lineage)

    def forget(self, ref: str) -> Checkpoint:
        """Drops a checkpoint: it is no longer listed or loaded. `prune` reclaims its bytes."""
        checkpoint = self.resolve(ref)
        outcome = self._fire(HookEvent.BEFORE_DELETE, checkpoint=checkpoint, step=checkpoint.step, reason="forget")
        if outcome.vetoed:
            raise SaveNotDoneError(f"not forgotten: {'; '.join(outcome.reasons)}", kind="vetoed")
        self.workspace.forget([checkpoint])
        self._fire(HookEvent.AFTER_DELETE, checkpoint=checkpoint, step=checkpoint.step)
        return checkpoint

    def plan_prune(self) -> PrunePlan:
        """The bytes that nothing names any more, as a plan for `prune`."""
        return self.workspace.plan_prune()

    def prune(self, plan: PrunePlan | None = None) -> Pruned:
        """Reclaims the bytes that nothing names any more. Waits for pending saves first."""
        self._queue.wait()
        return self.workspace.prune(plan or self.plan_prune())

    def verify(self, ref: str | None = None, *, read_data: bool = True, progress: Progress | None = None) -> VerifyReport:
        """Checks one checkpoint, or (None) every byte of the store. Damage is reported, not raised."""
        chosen = None if ref is None else [self.resolve(ref)]
        report = self.workspace.verify(chosen, read_data=read_data, progress=progress)
        if not report.ok:
            self._fire(HookEvent.CORRUPTION_FOUND, data={"problems": report.problems})
        return report

    # -- the end ----------------------------------------------------------------------------------

    @property
    def failures(self) -> list[tuple[int, BaseException]]:
        """(step, error) of every save that failed so far."""
        return list(self._saver.failures)

    def close(self) -> None:
        """Waits for pending saves, flushes the metrics and tells again which saves failed. May be repeated."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        self._queue.close()
        self._metrics.flush()
        self.hooks.close()
        for step, error in self._saver.failures:
            _log.error("reminder: the save of step %d failed: %s", step, error)
        self._arenas.clear()
        self.workspace.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<CheckpointManager {self.workspace.repository.store.url} experiment={self.experiment!r}>"

    # -- details ----------------------------------------------------------------------------------

    def _candidates(self, ref: str) -> list[Checkpoint]:
        return candidates(
            self.workspace.index, ref, experiment=self.experiment, metric=self.metric, mode=self.mode
        )

    def _load_one(
        self, checkpoint: Checkpoint, like: Any, include: Any, verify: Verify, framework: str | None
    ) -> Any:
        outcome = self._fire(HookEvent.BEFORE_LOAD, checkpoint=checkpoint, step=checkpoint.step)
        if outcome.vetoed:
            raise UsageError(f"the load was vetoed by {'; '.join(outcome.reasons)}", kind="vetoed")
        repository = self.workspace.repository
        try:
            manifest = repository.read(checkpoint.key).manifest
            return load_state(
                repository, manifest, registry, like=like, include=include, verify=verify, framework=framework
            )
        except CkptError as error:
            self._fire(HookEvent.LOAD_FAILED, checkpoint=checkpoint, step=checkpoint.step, error=error)
            raise

    def _damaged(self, checkpoint: Checkpoint, error: CkptError) -> None:
        self._fire(HookEvent.CORRUPTION_FOUND, checkpoint=checkpoint, step=checkpoint.step, error=error)
        self.workspace.index.tell(
            lambda catalog: catalog.record_check(checkpoint.id, "load", "damaged", {"error": str(error)})
        )

    def _checked_step(self, step: int) -> int:
        try:
            step = operator.index(step)
        except TypeError:
            step = -1
        if step < 0:
            raise UsageError("step= must be a whole number, 0 or more", kind="step", step=step)
        if self._last_step is not None and step < self._last_step:
            raise UsageError(
                f"step={step} goes backwards: step {self._last_step} was saved before it in this attempt; "
                "count on, or call begin_attempt() to start another training",
                kind="step",
                step=step,
                last_step=self._last_step,
            )
        return step

    def _check_metrics(self, metrics: Mapping[str, Any] | None, step: int) -> dict[str, float]:
        values = as_metrics(metrics)
        if self.metric is not None and math.isnan(values.get(self.metric, 0.0)):
            raise UsageError(
                f"metric {self.metric!r} is NaN at step {step}, so no checkpoint could be called best by it; "
                "save without it, or find out why it is NaN",
                kind="metric",
                metric=self.metric,
                step=step,
            )
        return values

    def _fire(self, event: HookEvent, **facts: Any) -> Any:
        return self.hooks.fire(HookContext(event, experiment=self.experiment, **facts))


def _close_at_exit(reference: weakref.ref[CheckpointManager]) -> None:
    manager = reference()
    if manager is not None:
        manager.close()
