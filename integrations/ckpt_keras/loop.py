"""Where `fit` can be stopped and gone on with exactly, and how it is put back there.

What touches `fit`'s private parts is here, in `watched.py`, `passes.py` and `evaluation.py`; written against Keras
3.11 to 3.15. The safe points lie just before a batch is asked for and just after an epoch's end: at both,
everything that belongs to what came before is done, by all callbacks, whatever their order. One `FitWatch` serves
all callbacks of ours in a fit.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, Protocol

import keras
from keras.src.trainers.epoch_iterator import EpochIterator

from ckpt_core import Session, UsageError
from ckpt_keras.companions import Companions
from ckpt_keras.evaluation import Evaluation
from ckpt_keras.feeds import ResumeData
from ckpt_keras.losses import BatchLoss
from ckpt_keras.passes import Passes
from ckpt_keras.rng import capture_rng, host_streams, restore_rng
from ckpt_keras.state import capture_model, restore_model, values_are_there
from ckpt_keras.watched import Guarded, watched

__all__ = ["FitWatch", "Participant"]

State = Mapping[str, Any]


class Participant(Protocol):
    """A callback of ours in the fit."""

    @property
    def session(self) -> Session:
        """Its session."""

    def let_go(self, error: BaseException | None) -> None:
        """The fit is over."""


class FitWatch:
    """Watches one fit, from the first callback that joins it to its end, whichever that is.

    Of several callbacks that have something to resume, the one that came furthest decides.
    """

    def __init__(self, callback: Any, resume_data: ResumeData) -> None:
        found = _fit_that_calls(callback)
        self.model = found["self"]
        self.logs: Mapping[str, Any] = {}
        """Of the epoch that ends, with what other callbacks have put in."""
        self._epochs = int(found["epochs"])
        self._step = 0
        self._epoch = int(self.model._initial_epoch or found["initial_epoch"])
        self._batch = 0
        self._iterator = found["epoch_iterator"]
        self._callbacks = found["callbacks"]
        self._participants: list[Participant] = []
        self._first_epoch = self.model._initial_epoch
        self._chosen: Participant | None = None
        self._pending: State | None = None
        self._nothing_to_do = self._begun = self._over = self._untold = False
        self._moment: dict[str, Any] = {}
        self._loss = BatchLoss()
        self._evaluation = Evaluation(self.model, found, type(self._iterator))
        self._passes = Passes(self._iterator, resume_data)
        self._companions: Companions | None = None
        watched(self._callbacks, self)
        watched(self._iterator, self)
        self._guarded = [Guarded(self.model, name, self) for name in ("train_function", "evaluate")]

    @classmethod
    def joined(cls, callback: Any, resume_data: ResumeData) -> FitWatch:
        """The watch of the fit that has called the callback: the one that is there, or a new one."""
        there = getattr(_fit_that_calls(callback)["callbacks"], "ckpt_watch", None)
        return there if isinstance(there, FitWatch) else cls(callback, resume_data)

    # -- beginning --------------------------------------------------------------------------------

    def join(self, participant: Participant) -> None:
        """Takes part from now on. Raises StateMismatchError for a model that is not the one that was saved."""
        resumption = participant.session.resumption
        state = resumption.state
        if state is not None:
            best = self._chosen.session.resumption.step if self._chosen is not None else -1
            if resumption.step > best:
                self.build()
                restore_model(self.model, state["model"])
                self._settle()
                self._choose(participant, state)
            else:
                _forget(state)
        self._participants.append(participant)

    def _choose(self, participant: Participant, state: State) -> None:
        self._chosen, self._pending = participant, state
        self._step = participant.session.resumption.step
        self._epoch, self._batch = state["loop"]["epoch"], state["data"]["batch"]
        self._loss = BatchLoss(*state["loop"].get("loss", ()))
        complete = participant.session.resumption.kind == "complete"
        self._nothing_to_do = complete and self._epochs <= state["loop"]["asked"]
        self.model._initial_epoch = _Epoch(self._epochs if self._nothing_to_do else self._epoch)

    def build(self) -> None:
        """See to it that the model has its variables. On TensorFlow they are made by the first step; here from what
        the data looks like, and nothing is fetched for it."""
        if keras.config.backend() == "tensorflow":
            self.model._symbolic_build(data_batch=self._iterator._distributed_dataset.element_spec)

    @property
    def resumed(self) -> bool:
        """Whether one of the callbacks has something to go on from."""
        return self._chosen is not None

    def _open(self) -> None:
        """All callbacks were told that training begins."""
        self._begun = True
        self.model._initial_epoch = self._first_epoch  # fit has read it
        self._companions = Companions(self._callbacks.callbacks, self._participants)
        for each in self._participants:
            each.session.begin(self._step, self._epoch)

    # -- what the callback list tells -------------------------------------------------------------

    def before_epoch(self) -> None:
        """Before any callback is told of an epoch's beginning."""
        if self._begun:
            return
        self._open()
        pending = self._pending
        if pending is not None:
            self._evaluation.begin(pending["validation"])
        self._passes.begin(pending["data"]["num_batches"] if pending is not None else None)
        if pending is None:
            return
        if pending["loop"]["boundary"] == "batch":
            self._passes.resume(pending["data"], self._put_back)
            return
        self._restore(pending)
        self.model.reset_metrics()  # as was done just now, before everything was put back
        if pending["data"]["under_way"]:
            self._passes.resume(pending["data"], None)
        else:
            self._passes.resume_between(pending["data"])
            restore_rng(pending["rng"])
        self._settle()

    def epoch_begun(self, epoch: int) -> None:
        """All callbacks were told that the epoch begins."""
        self._epoch = epoch
        if self._pending is None:  # or else it has begun in another process
            for each in self._participants:
                each.session.epoch_begin(self._step, epoch)

    def count(self, last: int) -> None:
        """Batches up to number `last` of the epoch, from 0, were trained on."""
        length = self._passes.length()
        done = last + 1 if length is None else min(last + 1, length)
        self._step += done - self._batch
        self._batch = done
        self._untold = True

    def batch_ended(self, logs: Any) -> None:
        """The callbacks were told of the batches that `count` has counted."""
        metrics, self._untold = _numbers(logs), False
        loss = self._loss.note(metrics.get("loss"), self._batch)
        for each in self._participants:
            each.session.step_end(self._step, self._epoch, metrics, loss=lambda: loss)

    def evaluated(self, logs: Any) -> None:
        """An evaluation within the fit is over."""
        metrics = {f"val_{name}": value for name, value in _numbers(logs).items()}
        for each in self._participants:
            each.session.evaluate_end(self._step, self._epoch, metrics)

    def epoch_ended(self, epoch: int) -> None:
        """All callbacks were told that the epoch is over: a safe point."""
        metrics, self.logs = _numbers(self.logs), {}
        for each in self._participants:
            each.session.epoch_end(self._step, epoch, metrics)
        self._batch, self._epoch = 0, epoch + 1
        self._loss = BatchLoss()
        self._passes.known = True
        if not self.model.stop_training and self._epoch < self._epochs:  # or else the end of training follows
            self._safe_point("epoch")

    def before_end(self) -> None:
        """Before any callback is told of the end of training."""
        if not self._begun:  # no epoch was run: what is left is to have everything as it was
            self._open()
            if self._pending is not None:
                self._put_back()

    def ended(self) -> None:
        """All callbacks were told of the end of training."""
        errors: list[BaseException] = []
        for each in self._participants:
            if self._nothing_to_do and each.session.resumption.kind == "complete":
                each.session.nothing_to_do()
            try:
                each.session.finish(self._step, max(0, self._epoch - 1), lambda: self._capture("end"))
            except BaseException as error:
                errors.append(error)
        self._let_go(errors[0] if errors else None)
        if errors:
            raise errors[0]

    # -- what the epoch iterator tells ------------------------------------------------------------

    def between_batches(self) -> None:
        """A batch is about to be asked for: a safe point, unless the epoch is over."""
        if not self._passes.begun:
            return
        self._moment = {name: stream.read() for name, stream in host_streams().items()}
        over = self._passes.note(self._batch)
        due = [each.session for each in self._participants if each.session.due]
        if due and not over and self._may_save(due):
            self._safe_point("batch")

    def _may_save(self, due: list[Session]) -> bool:
        """Whether there is another batch: or else the epoch's end is due, and comes first."""
        if self._passes.known:
            return True
        follows = self._passes.peek()
        return any(session.preempted is not None for session in due) if follows is None else follows

    def iterable(self, theirs: Any) -> Any:
        """What the epoch iterator is to iterate."""
        return self._passes.iterable(theirs)

    def delivering(self) -> None:
        """A batch is about to be asked of the data."""
        self._passes.delivering()

    def enumerate(self, theirs: Any) -> Iterator[Any]:
        """The steps of an epoch."""
        return self._passes.enumerate(theirs)

    # -- failing ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def guard(self, where: str) -> Iterator[None]:
        """Training ends by what is raised within, but for the end of the data. `where`: see `_after_failure`."""
        try:
            yield
        except (StopIteration, GeneratorExit):
            raise
        except BaseException as error:
            if type(error).__name__ != "OutOfRangeError":
                self._failed(error, where)
            raise

    def _failed(self, error: BaseException, where: str) -> None:
        if self._over:
            return
        self._over = True
        try:
            boundary = self._after_failure(where)
            if boundary == "batch" and self._untold:
                self.batch_ended({})
            for each in self._participants:
                capture = (lambda: self._capture(boundary)) if boundary is not None else None
                each.session.fail(error, self._step, self._epoch, capture)
        finally:
            self._let_go(error)

    def _after_failure(self, where: str) -> str | None:
        """At which boundary the state is good all the same; None where it is not, or where that is not known.

        Before a step begins, nothing has changed since the last batch. In a step that fails on JAX neither, if
        what it was given is still there; on PyTorch and TensorFlow it may be half made. After it, the model is
        as it should be; a callback that failed will not be told of this batch again.
        """
        if where == "end":
            return "epoch"
        over = self._passes.is_over(self._batch) if where == "after" else self._passes.was_over
        if not self._passes.begun or over:
            return None
        if where == "step" and keras.config.backend() == "jax":
            with contextlib.suppress(RuntimeError):  # what the step was given is gone
                self.model.jax_state_sync()
                return "failure" if values_are_there(self.model) else None
            return None
        return {"before": "failure", "after": "batch"}.get(where)

    # -- state ------------------------------------------------------------------------------------

    def _safe_point(self, boundary: str) -> None:
        for each in self._participants:
            if each.session.due:
                each.session.safe_point(self._step, self._epoch, lambda: self._capture(boundary))

    def _capture(self, boundary: str) -> dict[str, Any]:
        """Everything at this instant. `boundary`: `batch`, `epoch`, `end`; `failure`: as it was before the batch."""
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        assert self._companions is not None
        within = boundary in ("batch", "failure")
        with self._passes.held():
            return {
                "model": capture_model(self.model),
                "loop": {
                    "boundary": "batch" if within else "epoch",
                    "epoch": self._epoch,
                    "asked": self._epochs,
                    "loss": self._loss.state,
                },
                "data": self._passes.capture(self._batch, boundary),
                "callbacks": self._companions.capture(),
                "validation": self._evaluation.capture(),
                "rng": capture_rng(self._moment if boundary == "failure" else None),
            }

    def _restore(self, state: State) -> None:
        """Put everything back but the data; the random state last."""
        assert self._companions is not None
        restore_model(self.model, state["model"])
        self._companions.restore(state["callbacks"])
        self._evaluation.restore(state["validation"])
        restore_rng(state["rng"])

    def _put_back(self) -> None:
        assert self._pending is not None
        self._restore(self._pending)
        self._settle()

    def _settle(self) -> None:
        """What was resumed is in place, or another is."""
        if self._pending is not None:
            _forget(self._pending)
        self._pending = None

    # -- the end ----------------------------------------------------------------------------------

    def _let_go(self, error: BaseException | None) -> None:
        """Leave the model and everybody else as they were."""
        self._over = True
        self.model._initial_epoch = self._first_epoch
        for guarded in self._guarded:
            guarded.remove()
        for each in (self._callbacks, self._iterator):
            watched(each, None)
        self._passes.remove()
        with contextlib.ExitStack() as stack:  # each of them, whatever the others raise
            for participant in reversed(self._participants):
                stack.callback(participant.let_go, error)

    def abandon(self, error: BaseException | None = None) -> None:
        """The fit ends before it has begun, or has ended in a way that nobody was told of."""
        if not self._over:
            self._let_go(error)


class _Epoch(int):
    """An epoch to begin with. Keras takes 0 for nothing said."""

    def __bool__(self) -> bool:
        return True


def _forget(state: State) -> None:
    """What was loaded is not needed any more, and whoever holds on to it shall not hold its memory."""
    if isinstance(state, dict):
        state.clear()


def _fit_that_calls(callback: Any) -> Mapping[str, Any]:
    """The variables of the `fit` that has called a callback: Keras gives callbacks its model and no more."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "fit":
            found = frame.f_locals
            there = getattr(found.get("callbacks"), "callbacks", None)
            if isinstance(there, list) and any(each is callback for each in there):
                if isinstance(found.get("epoch_iterator"), EpochIterator):
                    return found
                break
        frame = frame.f_back
    raise UsageError(
        "CheckpointCallback is for model.fit(callbacks=[...]) of Keras 3, and cannot find it here", kind="fit"
    )


def _numbers(logs: Mapping[str, Any] | None) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in (logs or {}).items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            continue
    return found
