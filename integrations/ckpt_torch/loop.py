"""The walk through a training loop: its epochs, batches and steps, and the moments at which it may be saved.

What is saved is `training.py`'s; when the loop begins and how it ended is told to who holds it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_core import Session, UsageError
from ckpt_torch.leaving import advanced_by
from ckpt_torch.loader import TrackedLoader
from ckpt_torch.training import Training

__all__ = ["Ends", "Loop"]

_log = logging.getLogger("ckpt_core.torch")


@dataclass(frozen=True, slots=True)
class Ends:
    """What a loop tells. `left`: it is being dropped before its end; who had advanced it last."""

    begun: Callable[[], None]
    over: Callable[[], None]
    left: Callable[[Collection[int]], None]
    failed: Callable[[BaseException], None]


class Loop:
    """One training loop. Steps are counted where an optimizer makes one, or by `step`, once for each iteration."""

    def __init__(self, training: Training, session: Session, ends: Ends) -> None:
        self._training = training
        self._session = session
        self._ends = ends
        self._iteration_done = False
        self._within = False
        self._walking: list[TrackedLoader] = []
        self._inner: list[TrackedLoader] = []
        self._walks = 0
        self._fetched = 0
        self._epoch_began_at = 0

    # -- what the loop iterates over --------------------------------------------------------------

    def epochs(self, numbers: Sequence[int]) -> Iterator[int]:
        """See TorchCheckpointer.epochs."""
        return self._told(self._epochs(numbers))

    def steps(self, total: int) -> Iterator[int]:
        """See TorchCheckpointer.steps."""
        return self._told(self._steps(total))

    def batches(self, found: TrackedLoader) -> Iterator[Any]:
        """See TorchCheckpointer.batches."""
        self._ends.begun()
        training = self._training
        if not self._walking and not self._within and self._walks:
            raise UsageError(
                "a second pass over the loader, and nothing counts the epochs: write `for epoch in "
                "ckpt.epochs(range(10))` around it",
                kind="epochs",
            )
        training.between = False
        training.go()
        iterator = iter(found)
        # What a second loop over the same epoch comes after is not done again when it is resumed.
        since = training.step if self._walks else -1
        if self._walking:
            self._inner.append(found)
        else:
            self._walks += 1
        self._walking.append(found)
        try:
            while True:
                moment = self._before_fetch(since) if self._walking[0] is found else None
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                self._fetched += 1
                self._save(moment)
                if self._walking[0] is found:
                    self._begin_iteration()
                yield batch
        finally:
            self._walking.remove(found)

    def _told(self, turns: Iterator[int]) -> Iterator[int]:
        self._ends.begun()
        last: frozenset[int] = frozenset()
        self._within = True
        try:
            for turn in turns:
                last = advanced_by(sys._getframe().f_back)
                yield turn
            self._ends.over()
        except GeneratorExit:
            self._ends.left(last)
            raise
        except BaseException as error:
            self._ends.failed(error)
            raise
        finally:
            self._within = False

    def _epochs(self, numbers: Sequence[int]) -> Iterator[int]:
        training, total = self._training, len(numbers)
        training.asked["epochs"] = total
        if self._complete("epochs", total):
            return
        while training.epoch < total:
            if training.between:
                training.go()
                self._mark(training.moment())
                self._session.epoch_begin(training.step, training.epoch)
                training.between = False
            self._begin_iteration()
            self._walks = self._fetched = 0
            self._epoch_began_at = training.step
            yield numbers[training.epoch]
            self._end_epoch(total)

    def _steps(self, total: int) -> Iterator[int]:
        training = self._training
        training.asked["steps"] = total
        if self._complete("steps", total):
            return
        while training.step < total:
            training.go()
            self._safe_point()
            self._mark(training.moment())
            step = training.step
            self._begin_iteration()
            yield step
            if training.step == step:
                self._note_step({})
        self._safe_point(finished=True)

    # -- what happens in it -----------------------------------------------------------------------

    def step(self, metrics: Mapping[str, Any]) -> None:
        """See TorchCheckpointer.step."""
        self._ends.begun()
        self._note_step(metrics)
        if not self._walking and not self._within:
            self._safe_point()
            self._mark(self._training.moment())

    def evaluated(self, metrics: Mapping[str, Any]) -> None:
        """See TorchCheckpointer.evaluated."""
        self._ends.begun()
        self.count()
        self._session.evaluate_end(self._training.step, self._training.epoch, _numbers(metrics))

    def count(self) -> None:
        """Counts the step of an iteration in which an optimizer made one, and nobody called `step`."""
        steps = self._training.gradients.steps
        if steps and not self._iteration_done:
            self._note_step({}, 1 if self._walks else steps)

    def _note_step(self, metrics: Mapping[str, Any], steps: int = 1) -> None:
        self._training.step += steps
        self._iteration_done = True
        self._session.step_end(self._training.step, self._training.epoch, _numbers(metrics))

    # -- safe points ------------------------------------------------------------------------------

    def _before_fetch(self, since: int) -> dict[str, Any] | None:
        """What a fetch of data would change, if there is a save to be made; before it is made."""
        self.count()
        while self._inner:  # loops inside of an iteration are over with it
            each = self._inner.pop()
            if each not in self._walking:
                each.rest()
        moment = self._training.moment()
        if self._training.step == since:
            return None
        self._mark(moment)
        if not (self._iteration_done and self._session.due):
            return None
        if self._session.preempted is not None:  # no time for a fetch, for which workers may be gone
            self._save(moment)
            return None
        return moment

    def _save(self, moment: Mapping[str, Any] | None) -> None:
        if moment is not None:
            training = self._training
            self._session.safe_point(training.step, training.epoch, lambda: training.capture(moment))

    def _safe_point(self, *, finished: bool = False) -> None:
        if self._session.due:
            training = self._training
            self._session.safe_point(training.step, training.epoch, training.capture, finished=finished)

    def _mark(self, moment: Mapping[str, Any]) -> None:
        # A loader that keeps its own position may have handed out what it will not find again.
        if not any(each.stateful for each in self._training.loaders.values()):
            self._training.guard.mark(moment)

    def _begin_iteration(self) -> None:
        if self._iteration_done:
            self._training.gradients.begin_iteration()
        self._iteration_done = False

    def _end_epoch(self, total: int) -> None:
        training = self._training
        self.count()
        if training.loaders and not self._walks:
            _log.warning(
                "epoch %d took nothing from ckpt.loader: a loop that iterates over the loader itself is saved "
                "between epochs only", training.epoch,
            )  # fmt: skip
        elif self._fetched and training.step == self._epoch_began_at:
            _log.warning(
                "epoch %d made no step that could be counted: give the checkpointer the optimizer, or call step()",
                training.epoch,
            )
        training.end_epoch()
        self._session.epoch_end(training.step, training.epoch - 1)
        self._safe_point(finished=training.epoch == total)

    def _complete(self, what: str, total: int) -> bool:
        # Stopped early is complete, too, until more is asked for than then.
        before = self._training.asked_before.get(what, 0)
        complete = self._session.resumption.kind == "complete" and total <= before
        if complete:
            self._training.go()
            self._session.nothing_to_do()
        return complete


def _numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of one value as numbers; what is none is left for the manager to refuse."""
    return {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
