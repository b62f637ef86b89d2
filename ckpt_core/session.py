"""What all adapters share: events to hooks, requests to saves at safe points, preemption, resume, the end.

A session knows no framework. The adapter tells it what happens and hands it a function that captures the
state; the session says when to call it. The saving itself is the manager's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from signal import Signals
from typing import Any, Literal

from ckpt_core.errors import CkptError, SaveNotDoneError
from ckpt_core.hooks import HookContext, HookEvent
from ckpt_core.manager import CheckpointManager
from ckpt_core.model import Checkpoint
from ckpt_core.pipeline.attempts import described
from ckpt_core.pipeline.deferred import LazyTensors
from ckpt_core.pipeline.queue import SaveHandle
from ckpt_core.pipeline.resolve import gone_through
from ckpt_core.preemption import PREEMPTION_SIGNALS, PreemptionSignals
from ckpt_core.tracker.log import as_metrics
from ckpt_core.tree import flatten, registry

__all__ = ["Capture", "LazyTensors", "Resumption", "Session"]

_log = logging.getLogger("ckpt_core.session")

_LAST = (HookEvent.TRAIN_END, HookEvent.TRAIN_FAILED, HookEvent.PREEMPTED)
"""Events after which there is no safe point, or a save is made in any case."""

_FAREWELL = 5.0
"""Seconds that hooks in the background have to tell of a preemption, before the signal takes its course."""

Capture = Callable[[], Mapping[str, Any]]
"""Gives the state of the training run at this instant. The key `session` in it is the session's own."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """How a session began. `state` is what to restore; None where training starts from nothing.

    `kind`: `fresh` (there was nothing before), `new-attempt` (there was, and it is left alone), `resumed`,
    or `complete` (the checkpoint is of a training that had come to its end).
    """

    kind: Literal["fresh", "new-attempt", "resumed", "complete"]
    checkpoint: Checkpoint | None = None
    state: dict[str, Any] | None = None

    @property
    def step(self) -> int:
        """The step that training goes on from."""
        return self.checkpoint.step if self.checkpoint is not None else 0


class Session:
    """One run of a training program over one manager.

    The adapter calls, in this order: `resume`, `begin`, then the events as they happen and `safe_point` at
    every instant at which a resume would be exact, and at last `finish` or `fail`. All from one thread.
    `signals`: those after which it saves and lets the earlier handler go on; or what notes them, where one of
    several processes must tell the others first.
    """

    def __init__(
        self,
        manager: CheckpointManager,
        *,
        signals: Iterable[Signals] | PreemptionSignals = PREEMPTION_SIGNALS,
    ) -> None:
        self.manager = manager
        self._signals = signals if isinstance(signals, PreemptionSignals) else PreemptionSignals(signals)
        self._requests: list[str] = []
        self._metrics: dict[str, float] = {}
        self._metrics_step: int | None = None
        self._moves = 0
        self._saved: tuple[int, bool] | None = None
        self._handle: SaveHandle | None = None
        self._ended = False
        self._passing: Signals | None = None
        self.resumption = Resumption("fresh")
        self.lazy: LazyTensors | None = None
        """What the adapter knows of tensors that need not be copied before a save lets training go on."""
        self.learning_rate: Callable[[], float | None] | None = None
        """What the adapter reads the learning rate by that the next step will use; asked only if a hook listens."""
        self._rate: float | None = None
        self._at: tuple[int, int | None] = (0, None)
        self._states: dict[str, Any] = {}

    # -- the beginning ----------------------------------------------------------------------------

    def resume(self, resume: str | None = "auto") -> Resumption:
        """Decides what to go on from, loads it, and begins the manager's attempt accordingly.

        `"auto"`: the newest checkpoint, or a fresh start where there is none. None: a new attempt, whatever
        there is. Anything else is a reference. Raises NotFoundError (never for `"auto"`); CorruptionError,
        also where there are checkpoints and not one of them can be read: then nothing begins anew unasked.
        """
        if resume is None:
            return self._start_anew()
        if resume == "auto" and self.manager.latest() is None:
            return self._start_anew()
        reference = "latest" if resume == "auto" else resume
        state = self.manager.load(reference)
        assert self.manager.loaded is not None
        return self.resumed(self.manager.loaded, state)

    def resumed(self, checkpoint: Checkpoint, state: dict[str, Any]) -> Resumption:
        """Goes on from a checkpoint that was loaded already: begins the attempt that continues it."""
        facts = state.pop("session", {})
        complete = bool(facts.get("finished"))
        self._states = facts.get("hooks", {})
        attempt = self.manager.begin_attempt(checkpoint)
        self.resumption = Resumption("complete" if complete else "resumed", checkpoint, state)
        _log.info(
            "%s: resumed from checkpoint %s, step %d, saved by attempt %d; this is attempt %d",
            self.manager.experiment, checkpoint.id, checkpoint.step, checkpoint.attempt.number, attempt.number,
        )  # fmt: skip
        return self.resumption

    def _start_anew(self) -> Resumption:
        there = self.manager.workspace.index.newest(self.manager.experiment)
        attempt = self.manager.begin_attempt(None)
        if there is None:
            _log.info("%s: a fresh start, there are no checkpoints yet", self.manager.experiment)
            self.resumption = Resumption("fresh")
        else:
            _log.info(
                "%s: attempt %d starts from nothing; the checkpoints of earlier attempts (the newest is step "
                "%d of attempt %d) stay as they are",
                self.manager.experiment, attempt.number, there.step, there.attempt.number,
            )  # fmt: skip
            self.resumption = Resumption("new-attempt")
        return self.resumption

    def nothing_to_do(self) -> None:
        """The adapter found that the training it resumed is complete; `finish` will save nothing."""
        _log.info(
            "%s: training is already complete at step %d: nothing to do",
            self.manager.experiment, self.resumption.step,
        )  # fmt: skip

    def begin(self, step: int, epoch: int | None = None) -> None:
        """Training begins, or goes on: TRAIN_BEGIN. Signals are noted from here on.

        Hooks get back what they had to remember when the checkpoint was made that was resumed.
        """
        self._signals.install()
        self.manager.hooks.load_state_dict(self._states)
        self._fire(HookEvent.TRAIN_BEGIN, step, epoch)
        self._watch_rate()

    # -- what happens -----------------------------------------------------------------------------

    def epoch_begin(self, step: int, epoch: int) -> None:
        """EPOCH_BEGIN."""
        self._fire(HookEvent.EPOCH_BEGIN, step, epoch)

    def step_end(
        self,
        step: int,
        epoch: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        *,
        loss: Callable[[], float | None] | None = None,
    ) -> None:
        """A step was made: STEP_END. Metrics of earlier steps do not belong to the weights any more.

        `loss` reads that of this step, where it is not among the metrics; it is called only if a hook wants to know.
        """
        self._move(HookEvent.STEP_END, step, epoch, metrics, read_loss=loss)

    def evaluate_end(
        self, step: int, epoch: int | None = None, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """The weights of this step were evaluated: EVALUATE_END."""
        self._move(HookEvent.EVALUATE_END, step, epoch, metrics)

    def epoch_end(self, step: int, epoch: int, metrics: Mapping[str, Any] | None = None) -> None:
        """Epoch number `epoch`, from 0, is over: EPOCH_END."""
        self._move(HookEvent.EPOCH_END, step, epoch, metrics)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Adds metrics to the series and to the next checkpoint of this very step."""
        if metrics:
            self._note_metrics(as_metrics(metrics), step)

    def request(self, reason: str) -> None:
        """Asks for a save at the next safe point."""
        self._requests.append(reason)

    @property
    def due(self) -> bool:
        """Whether there is something to do at the next safe point: a save, or a failed one to be raised.

        To be asked at the safe point: what has changed the learning rate since the last event is noticed here.
        """
        self._watch_rate()
        failed = self.manager.on_save_error == "stop" and bool(self.manager.failures)
        return bool(self._requests) or self.preempted is not None or failed

    @property
    def preempted(self) -> Signals | None:
        """The signal that has announced the end, if one has."""
        return self._signals.received

    # -- saving -----------------------------------------------------------------------------------

    def safe_point(
        self, step: int, epoch: int | None, capture: Capture, *, finished: bool = False
    ) -> SaveHandle | None:
        """A resume from this instant would be exact: make the save that is due, if one is.

        `finished`: there is nothing left to train. What prevents the first save is raised, as it most likely
        prevents all; later failures are logged, or raised where `on_save_error` is `stop`. After a
        preemption signal the save is durable before this goes on, and then the earlier handler of the signal
        is called, which may end the process.
        """
        self._watch_rate()
        if self.preempted is not None:
            self._preempt(self.preempted, step, epoch, capture)
            return None
        if self.manager.on_save_error == "stop":
            self.manager.raise_failures()
        if not self._requests:
            return None
        reason, self._requests = "; ".join(dict.fromkeys(self._requests)), []
        return self._save(step, capture, reason, finished=finished)

    def finish(self, step: int, epoch: int | None, capture: Capture) -> None:
        """Training came to its end: TRAIN_END and the last save.

        Returns when everything is durable. Raises what prevented the last save, as nothing else holds the
        result of the training; SaveFailedError for earlier ones where `on_save_error` asks for it.
        """
        if self._ended:
            return
        self._ended = True
        try:
            self._fire(HookEvent.TRAIN_END, step, epoch)
            if (self._moves or self.resumption.kind != "complete") and not self._is_durable(finished=True):
                self._save(step, capture, "end of training", finished=True, wait=True)
        except SaveNotDoneError as error:
            _log.warning("%s", error)
        finally:
            self.manager.wait()
        self.manager.end_attempt("finished")
        if self.preempted is not None:  # it came too late to be noticed: what it announced is still to come
            self._signals.pass_on()
        self.manager.raise_failures()

    def fail(
        self, error: BaseException, step: int, epoch: int | None, capture: Capture | None = None
    ) -> None:
        """Training ended by an exception, which the caller lets go on: TRAIN_FAILED, and wait for saves.

        `capture` only where this is a safe point: then what was not saved yet is. Raises nothing.
        """
        if self._ended:
            return
        self._ended = True
        told = {} if self._passing is None else {"preempted": self._passing.name}
        try:
            reason = type(error).__name__
            self._fire(HookEvent.TRAIN_FAILED, step, epoch, error=error, reason=reason, data=told)
            if capture is not None and not self._is_durable():
                self._save(step, capture, f"{type(error).__name__} ended training", wait=True)
        except Exception as second:
            _log.error("no save after %s: %s", type(error).__name__, second)
        finally:
            self.manager.wait()
            self.manager.end_attempt("failed", described(error))

    def close(self) -> None:
        """Gives the signals back, whatever happened. May be repeated."""
        self._signals.uninstall()

    # -- details ----------------------------------------------------------------------------------

    def _preempt(self, number: Signals, step: int, epoch: int | None, capture: Capture) -> None:
        self._fire(HookEvent.PREEMPTED, step, epoch, reason=number.name)
        self._requests.clear()
        try:
            if not self._is_durable():
                self._save(step, capture, number.name, wait=True)
        except Exception as error:
            _log.error("the save before %s takes its course failed: %s", number.name, error)
        self.manager.end_attempt("preempted", number.name)
        self.manager.hooks.drain(_FAREWELL)
        self._passing = number
        self._signals.pass_on()
        self._passing = None
        self.manager.continue_attempt()  # whoever handled the signal let training go on

    def _save(
        self, step: int, capture: Capture, reason: str, *, finished: bool = False, wait: bool = False
    ) -> SaveHandle | None:
        facts: dict[str, Any] = {"finished": finished}
        remembered = self._remembered()
        if remembered:
            facts["hooks"] = remembered
        state = {**capture(), "session": facts}
        metrics = self._usable(self._metrics if self._metrics_step == step else {}, step)
        try:
            self._handle = self.manager.save(
                state, step=step, metrics=metrics, reason=reason, wait=wait, lazy=self.lazy
            )
        except CkptError as error:
            if (
                self._saved is None or wait
            ):  # most likely a state that can never be saved: better told at once
                raise
            _log.error("the save of step %d failed: %s", step, error)
            return None
        self._saved = (self._moves, finished)
        return self._handle

    def _remembered(self) -> dict[str, Any]:
        """What hooks have to remember, as far as it can be saved: the state of a hook costs no checkpoint."""
        found = {}
        for name, state in self.manager.hooks.state_dict().items():
            try:
                flatten(state, registry)
            except CkptError as error:
                _log.error("the state of hook %s is not saved: %s", name, error)
            else:
                found[name] = state
        return found

    def _is_durable(self, *, finished: bool = False) -> bool:
        """Whether nothing has happened since the last save, and that one, waited for, did not fail."""
        if self._saved is None or self._handle is None or self._saved[0] != self._moves:
            return False
        return (self._saved[1] or not finished) and self._handle.exception() is None

    def _usable(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        # A NaN cannot take part in "best", and is no reason to lose a checkpoint.
        best = self.manager.metric
        if best is None or not math.isnan(metrics.get(best, 0.0)):
            return dict(metrics)
        _log.warning("metric %s is NaN at step %d: the checkpoint is saved without it", best, step)
        return {name: value for name, value in metrics.items() if name != best}

    def _move(
        self, event: HookEvent, step: int, epoch: int | None, metrics: Mapping[str, Any] | None, **facts: Any
    ) -> None:
        self._moves += 1
        self._note_metrics(as_metrics(metrics), step)
        self._fire(event, step, epoch, **facts)
        self._watch_rate()

    def _watch_rate(self) -> None:
        """LEARNING_RATE_CHANGED, if it has."""
        if self.learning_rate is None or not self.manager.hooks.listens(HookEvent.LEARNING_RATE_CHANGED):
            return
        before, self._rate = self._rate, self.learning_rate()
        if self._rate is not None and self._rate != before:
            self._fire(HookEvent.LEARNING_RATE_CHANGED, *self._at, data={"before": before, "now": self._rate})

    def _keep(self, step: int, tag: str, reason: str) -> None:
        """Keeps the newest checkpoint of this step or an earlier one that led here, once what is pending is there."""
        manager = self.manager
        try:
            manager.wait()
            line = gone_through(manager.attempt, manager.checkpoints(), self._forgotten)
            last = next((c for c in line if c.step <= step), None)
            if last is None:
                _log.warning("%s, and no checkpoint of step %d or before is left to be kept", reason, step)
                return
            manager.workspace.tag(last, tag)
            manager.workspace.pin(last)
            manager.workspace.audit(
                "keep", last.id, "done", experiment=manager.experiment, step=last.step, tag=tag, reason=reason
            )
            _log.warning("%s: the checkpoint of step %d is kept as %r", reason, last.step, tag)
        except CkptError as error:
            _log.error("%s, and the last good checkpoint could not be kept: %s", reason, error)

    def _forgotten(self, checkpoint: str) -> Checkpoint | None:
        """A checkpoint that is not there any more, if the catalog knows of it and is not away."""
        return self.manager.workspace.index.consult(
            lambda catalog: catalog.checkpoint(checkpoint, include_forgotten=True)
        )

    def _note_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if step != self._metrics_step:
            self._metrics, self._metrics_step = {}, step
        self._metrics.update(metrics)
        if metrics:
            self.manager.log(metrics, step=step)

    def _fire(self, event: HookEvent, step: int, epoch: int | None, **facts: Any) -> None:
        """Tells the hooks. What they ask for is noted, or done if it needs no safe point."""
        self._at = (step, epoch)
        metrics = self._metrics if self._metrics_step == step else {}
        context = HookContext(
            event, step=step, epoch=epoch, experiment=self.manager.experiment,
            attempt=self.manager.attempt, metrics=metrics, **facts,
        )  # fmt: skip
        outcome = self.manager.hooks.fire(context)
        for wish in outcome.keep_requests:
            self._keep(*wish)
        if event not in _LAST:
            self._requests.extend(outcome.save_requests)
