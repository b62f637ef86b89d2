"""Where `fit` can be stopped and gone on with exactly, and how it is put back there.

All that touches `fit`'s private parts is here and in `watched.py`; written against Keras 3.11 to 3.15. The safe
points lie just before a batch is asked for and just after an epoch's end: at both, everything that belongs to what
came before is done, by all callbacks, whatever their order. One `FitWatch` serves all callbacks of ours in a fit.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from types import FrameType, GeneratorType
from typing import Any, Protocol

import keras
from keras.src.trainers.epoch_iterator import EpochIterator

from ckpt_core import Session, UsageError
from ckpt_keras.companions import Companions
from ckpt_keras.feeds import ResumeData
from ckpt_keras.rng import capture_rng, host_streams, restore_rng
from ckpt_keras.sources import Source, held_by, source_of
from ckpt_keras.state import capture_model, restore_model, values_are_there
from ckpt_keras.watched import Guarded, Peekable, watched

__all__ = ["FitWatch", "Participant", "build"]

_log = logging.getLogger("ckpt_core.keras")

State = Mapping[str, Any]
_EVALUATION = (
    "val_x", "val_y", "val_sample_weight", "validation_batch_size", "batch_size", "validation_steps",
)  # fmt: skip


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
        self.epochs = int(found["epochs"])
        self.step = 0
        self.epoch = int(self.model._initial_epoch or found["initial_epoch"])
        self.batch = 0
        self.logs: Mapping[str, Any] = {}
        """Of the epoch that ends, with what other callbacks have put in."""
        self._iterator = found["epoch_iterator"]
        self._callbacks = found["callbacks"]
        self._validation = found["validation_data"]
        self._evaluation = {name: found.get(name) for name in _EVALUATION}
        self._resume_data: ResumeData = resume_data
        self._participants: list[Participant] = []
        self._first_epoch = self.model._initial_epoch
        self._chosen: Participant | None = None
        self._pending: State | None = None
        self._pending_data: State | None = None
        self._nothing_to_do = False
        self._begun = False
        self._ended = False
        self._over = False
        self._known = True
        self._untold = False
        self._moment: dict[str, Any] = {}
        self._ahead: Peekable | None = None
        self._source: Source | None = None
        self._companions: Companions | None = None
        watched(self._callbacks, self)
        watched(self._iterator, self)
        self._guarded = [Guarded(self.model, name, self) for name in ("train_function", "evaluate")]

    @classmethod
    def joined(cls, callback: Any, resume_data: ResumeData) -> FitWatch:
        """The watch of the fit that has called the callback: the one that is there, or a new one."""
        there = getattr(_fit_that_calls(callback)["callbacks"], "ckpt_watch", None)
        return there if isinstance(there, FitWatch) else cls(callback, resume_data)

    def join(self, participant: Participant) -> None:
        """Takes part from now on. Raises StateMismatchError for a model that is not the one that was saved."""
        resumption = participant.session.resumption
        state = resumption.state
        if state is not None:
            best = self._chosen.session.resumption.step if self._chosen is not None else -1
            if resumption.step > best:
                self.build()
                restore_model(self.model, state["model"])
                if self._pending is not None:
                    _forget(self._pending)
                self._choose(participant, state)
            else:
                _forget(state)
        self._participants.append(participant)

    def _choose(self, participant: Participant, state: State) -> None:
        self._chosen, self._pending = participant, state
        self.step = participant.session.resumption.step
        loop = state["loop"]
        self.epoch, self.batch = loop["epoch"], loop["batch"]
        complete = participant.session.resumption.kind == "complete"
        self._nothing_to_do = complete and self.epochs <= loop["asked"]
        self.model._initial_epoch = _Epoch(self.epochs if self._nothing_to_do else self.epoch)

    def build(self) -> None:
        """See to it that the model has its variables: on TensorFlow the first step would make them."""
        build(self.model, self._iterator)

    @property
    def resumed(self) -> bool:
        """Whether one of the callbacks has something to go on from."""
        return self._chosen is not None

    # -- what the callback list tells -------------------------------------------------------------

    def before_epoch(self) -> None:
        """Before any callback is told of an epoch's beginning."""
        if self._begun:
            return
        self._open()
        pending = self._pending
        if pending is not None and self._iterator._num_batches is None:
            self._iterator._num_batches = pending["loop"]["num_batches"]
        if pending is not None and pending["loop"]["evaluates"]:
            self._make_evaluation()
        self._known = self._length() is not None
        self._source = source_of(
            self._iterator, resume_data=self._resume_data, peeks=self._peeks and not self._known
        )
        if pending is not None and pending["loop"]["boundary"] == "epoch":
            self._restore(pending)
            self.model.reset_metrics()  # as was done just now, before everything was put back
            if pending["data_under_way"]:
                self._pending_data = pending["data"]
            else:
                self._source.resume_between(pending["data"])
                restore_rng(pending["rng"])
            self._settle()

    def epoch_begun(self, epoch: int) -> None:
        """All callbacks were told that the epoch begins."""
        self.epoch = epoch
        if self._pending is not None:
            return  # it has begun in another process
        for each in self._participants:
            each.session.epoch_begin(self.step, epoch)

    def batch_ended(self, logs: Any) -> None:
        """The callbacks were told of the batches that `count` has counted."""
        metrics, self._untold = _numbers(logs), False
        for each in self._participants:
            each.session.step_end(self.step, self.epoch, metrics)

    def count(self, last: int) -> None:
        """Batches up to number `last` of the epoch were trained on."""
        length = self._length()
        done = last + 1 if length is None else min(last + 1, length)
        self.step += done - self.batch
        self.batch = done
        self._untold = True

    def evaluated(self, logs: Any) -> None:
        """An evaluation within the fit is over."""
        metrics = {f"val_{name}": value for name, value in _numbers(logs).items()}
        for each in self._participants:
            each.session.evaluate_end(self.step, self.epoch, metrics)

    def epoch_ended(self, epoch: int) -> None:
        """All callbacks were told that the epoch is over: a safe point."""
        metrics, self.logs = _numbers(self.logs), {}
        for each in self._participants:
            each.session.epoch_end(self.step, epoch, metrics)
        self.batch, self.epoch = 0, epoch + 1
        self._known = True
        if not self.model.stop_training and self.epoch < self.epochs:  # or else the end of training follows
            self._safe_point("epoch")

    def before_end(self) -> None:
        """Before any callback is told of the end of training."""
        if self._begun:
            return
        # No epoch was run: what is left is to have everything as it was.
        self._open()
        if self._pending is not None:
            self._restore(self._pending)
            self._settle()

    def ended(self) -> None:
        """All callbacks were told of the end of training."""
        errors: list[BaseException] = []
        for each in self._participants:
            if self._nothing_to_do and each.session.resumption.kind == "complete":
                each.session.nothing_to_do()
            try:
                each.session.finish(self.step, max(0, self.epoch - 1), lambda: self._capture("end"))
            except BaseException as error:
                errors.append(error)
        self._let_go(errors[0] if errors else None)
        if errors:
            raise errors[0]

    def _open(self) -> None:
        self._begun = True
        self.model._initial_epoch = self._first_epoch  # fit has read it
        self._companions = Companions(self._callbacks.callbacks, self._participants)
        self._memory = held_by(self._validation)
        for each in self._participants:
            each.session.begin(self.step, self.epoch)

    def _make_evaluation(self) -> None:
        """The iterator over the validation data, as `fit` makes it for the first evaluation, and keeps it.

        To make it may fetch batches and draw for them: that was done before what is now restored.
        """
        found, model = self._evaluation, self.model
        if self._validation is None or getattr(model, "_eval_epoch_iterator", None) is not None:
            return
        options = {
            "x": found["val_x"], "y": found["val_y"], "sample_weight": found["val_sample_weight"],
            "batch_size": found["validation_batch_size"] or found["batch_size"],
            "steps_per_execution": model.steps_per_execution, "steps_per_epoch": found["validation_steps"],
            "shuffle": False,
        }  # fmt: skip
        if hasattr(self._iterator, "_distribute_strategy"):
            options["distribute_strategy"] = model.distribute_strategy
        model._eval_epoch_iterator = type(self._iterator).__mro__[1](**options)
        if isinstance(found["val_x"], GeneratorType):
            _log.warning(
                "the validation data is a generator: it begins anew, and evaluations will not see what they would "
                "have seen. Give fit a PyDataset or arrays"
            )

    # -- what the epoch iterator tells ------------------------------------------------------------

    def between_batches(self) -> None:
        """A batch is about to be asked for: a safe point, unless the epoch is over."""
        if self._pending is not None or self._pending_data is not None or self._source is None:
            return
        self._moment = {name: stream.read() for name, stream in host_streams().items()}
        if self._epoch_is_over():
            return
        due = [each.session for each in self._participants if each.session.due]
        if due and not self._known:
            if self._ahead is not None:
                if not self._ahead.peek():
                    return
            elif all(session.preempted is None for session in due):
                return  # nobody knows whether this was the last batch: the epoch's end will save
        if due:
            self._safe_point("batch")

    def iterable(self, theirs: Any) -> Any:
        """What the epoch iterator is to iterate."""
        own = self._source.iterable() if self._source is not None else None
        found = theirs() if own is None else own
        if not self._peeks or self._known or self._source is None:
            return found
        self._ahead = Peekable(found)
        return self._ahead

    def delivering(self) -> None:
        """A batch is about to be asked of the data."""
        if self._source is not None:
            self._source.delivering()

    def enumerate(self, theirs: Any) -> Iterator[Any]:
        """The steps of an epoch: as Keras counts them, or from the batch on that was resumed."""
        iterator, data, pending = self._iterator, self._pending_data, self._pending
        source = self._source
        if source is None or (data is None and pending is None):
            yield from theirs()
            return
        if pending is None:
            # The epoch begins, in the midst of a pass over the data that spans several.
            assert data is not None
            self._pending_data = None
            streams = capture_rng()
            source.resume(data)
            iterator._current_iterator = iter(iterator._get_iterator())
            iterator._steps_seen = data["steps_seen"]
            restore_rng(streams)
            yield from theirs()
            return
        loop = pending["loop"]
        if not pending["data_under_way"]:
            source.resume_between(pending["data"])
            self._restore(pending)
            self._settle()
            yield from theirs()
            return
        iterator.data_adapter.on_epoch_begin()
        source.resume(pending["data"])
        iterator._current_iterator = iter(iterator._get_iterator())
        iterator._steps_seen = pending["data"]["steps_seen"]
        first = loop["batch"]
        self._restore(pending)
        self._settle()
        yield from self._from(first)

    def _from(self, batch: int) -> Iterator[Any]:
        """`EpochIterator._enumerate_iterator` from a batch on, when the iterator is there."""
        iterator = self._iterator
        size = iterator.steps_per_execution
        end = iterator.steps_per_epoch or iterator._num_batches or sys.maxsize
        for step in range(batch, end, size):
            if iterator._num_batches and iterator._steps_seen >= iterator._num_batches:
                if iterator.steps_per_epoch:
                    iterator._interrupted_warning()
                break
            iterator._steps_seen += size
            yield step, step + size - 1, iterator._current_iterator
        if iterator._num_batches and iterator._steps_seen >= iterator._num_batches:
            iterator._current_iterator = iter(iterator._get_iterator())
            iterator._steps_seen = 0
        iterator.data_adapter.on_epoch_end()

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
                each.session.fail(error, self.step, self.epoch, capture)
        finally:
            self._let_go(error)

    def _after_failure(self, where: str) -> str | None:
        """At which boundary the state is good all the same; None where it is not, or where that is not known.

        Before a step begins, nothing has changed since the last batch. In a step that fails on JAX neither, if
        what it was given is still there; on PyTorch and TensorFlow it may be half made. After it, the model is
        as it should be; a callback that failed will not be told of this batch again.
        """
        if not self._begun or self._pending is not None or self._source is None or self._ended:
            return None
        if where == "end":
            return "epoch"
        if self._pending_data is not None or self._epoch_is_over():
            return None
        if where == "before":
            return "failure"
        if where == "step" and keras.config.backend() == "jax":
            with contextlib.suppress(RuntimeError):  # what the step was given is gone
                self.model.jax_state_sync()
                return "failure" if values_are_there(self.model) else None
            return None
        return "batch" if where == "after" and self.batch else None

    # -- state ------------------------------------------------------------------------------------

    def _safe_point(self, boundary: str) -> None:
        for each in self._participants:
            if each.session.due:
                each.session.safe_point(self.step, self.epoch, lambda: self._capture(boundary))

    def _capture(self, boundary: str) -> dict[str, Any]:
        """Everything at this instant. `boundary`: `batch`, `epoch`, `end`; `failure`: as it was before the batch."""
        model, iterator, source = self.model, self._iterator, self._source
        if hasattr(model, "jax_state_sync"):
            model.jax_state_sync()
        assert self._companions is not None
        within = boundary in ("batch", "failure")
        held = source.held() if source is not None else contextlib.nullcontext()
        with held:
            # With steps_per_epoch a pass over the data goes on from one epoch to the next.
            spans = iterator.steps_per_epoch is not None and iterator._current_iterator is not None
            under_way = source is not None and boundary != "end" and ((within and self.batch > 0) or spans)
            seen = self.batch if within and not spans else iterator._steps_seen
            data: dict[str, Any] = {}
            if source is not None:
                data = source.position(seen) if under_way else source.between()
            return {
                "model": capture_model(model),
                "loop": {
                    "boundary": "batch" if within else "epoch",
                    "epoch": self.epoch,
                    "batch": self.batch if within else 0,
                    "num_batches": iterator._num_batches,
                    "evaluates": getattr(model, "_eval_epoch_iterator", None) is not None,
                    "asked": self.epochs,
                },
                "data": {**data, "steps_seen": seen},
                "data_under_way": under_way,
                "callbacks": self._companions.capture(),
                "validation": {**self._memory.read(), "orders": self._memory.read_orders()},
                "rng": capture_rng(self._moment if boundary == "failure" else None),
            }

    def _restore(self, state: State) -> None:
        """Put everything back but the data; the random state last."""
        assert self._companions is not None
        restore_model(self.model, state["model"])
        self._companions.restore(state["callbacks"])
        self._memory.write(state["validation"])
        restore_rng(state["rng"])

    def _settle(self) -> None:
        """What was resumed is in place."""
        if self._pending is not None:
            _forget(self._pending)
        self._pending = None

    # -- details ----------------------------------------------------------------------------------

    @property
    def _peeks(self) -> bool:
        """Whether Python can look at the next batch before the step asks for it."""
        return bool(keras.config.backend() != "tensorflow")

    def _length(self) -> int | None:
        """Batches in an epoch, as far as that is known."""
        iterator = self._iterator
        found = iterator.steps_per_epoch or iterator._num_batches
        return int(found) if found else None

    def _epoch_is_over(self) -> bool:
        iterator, length = self._iterator, self._length()
        if length is not None and self.batch >= length:
            return True
        return bool(self.batch and iterator._num_batches and iterator._steps_seen >= iterator._num_batches)

    def _let_go(self, error: BaseException | None) -> None:
        """Leave the model and everybody else as they were."""
        self._over = self._ended = True
        self.model._initial_epoch = self._first_epoch
        for guarded in self._guarded:
            guarded.remove()
        for each in (self._callbacks, self._iterator):
            watched(each, None)
        if self._source is not None:
            self._source.remove()
        with contextlib.ExitStack() as stack:  # each of them, whatever the others raise
            for participant in reversed(self._participants):
                stack.callback(participant.let_go, error)

    def abandon(self) -> None:
        """The fit ended in a way that nobody was told of."""
        if not self._over:
            self._let_go(None)


class _Epoch(int):
    """An epoch to begin with. Keras takes 0 for nothing said."""

    def __bool__(self) -> bool:
        return True


def build(model: Any, iterator: Any) -> None:
    """Make the variables of a model that has none yet, from what the data looks like. Nothing is fetched for it."""
    if keras.config.backend() == "tensorflow":
        model._symbolic_build(data_batch=iterator._distributed_dataset.element_spec)


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
