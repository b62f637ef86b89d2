"""The training data of a fit as its epoch iterator goes over it: one pass in each epoch, or one over several.

Where a position lies and how the iterator is brought there; what kind of data it is, `sources.py` knows. When it
happens is `loop.py`'s to say.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from ckpt_keras.feeds import ResumeData
from ckpt_keras.rng import capture_rng, restore_rng
from ckpt_keras.sources import Source, source_of
from ckpt_keras.watched import Peekable

__all__ = ["Passes"]


class Passes:
    """The data behind one epoch iterator of Keras, from `begin` on with a position."""

    def __init__(self, iterator: Any, resume_data: ResumeData) -> None:
        self._iterator = iterator
        self._resume_data: ResumeData = resume_data
        self._source: Source | None = None
        self._ahead: Peekable | None = None
        self._pending: tuple[Mapping[str, Any], Callable[[], None] | None] | None = None
        self._noted = (False, 0)
        self.known = True
        """Whether it is known how many batches an epoch has."""

    def begin(self, num_batches: int | None) -> None:
        """Before the first epoch. `num_batches`: what earlier passes, in another process, have found out."""
        if self._iterator._num_batches is None:
            self._iterator._num_batches = num_batches
        self.known = self.length() is not None
        self._source = source_of(
            self._iterator, resume_data=self._resume_data, peeks=_can_peek() and not self.known
        )

    def remove(self) -> None:
        """Leave Keras' objects as they were."""
        if self._source is not None:
            self._source.remove()

    # -- how far it is ----------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether there are positions by now."""
        return self._source is not None and self._pending is None

    def length(self) -> int | None:
        """Batches in an epoch, as far as that is known."""
        found = self._iterator.steps_per_epoch or self._iterator._num_batches
        return int(found) if found else None

    def is_over(self, batch: int) -> bool:
        """Whether the epoch has no more batches after so many."""
        iterator, length = self._iterator, self.length()
        if length is not None and batch >= length:
            return True
        return bool(batch and iterator._num_batches and iterator._steps_seen >= iterator._num_batches)

    def note(self, batch: int) -> bool:
        """Just before a batch is asked for: whether the epoch has no more of them. What follows may fail, when
        the iterator has counted it already."""
        self._noted = (self.is_over(batch), self._iterator._steps_seen)
        return self._noted[0]

    @property
    def was_over(self) -> bool:
        """What `note` found."""
        return self._noted[0]

    def peek(self) -> bool | None:
        """Whether another batch follows, where `known` does not tell; None where nobody can say."""
        return None if self._ahead is None else self._ahead.peek()

    # -- positions --------------------------------------------------------------------------------

    def held(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which nothing is fetched."""
        return contextlib.nullcontext() if self._source is None else self._source.held()

    def capture(self, batch: int, boundary: str) -> dict[str, Any]:
        """Where it stands after so many `batch`es of an epoch, between epochs (`epoch`), at the `end` for good; or
        (`failure`) where it stood when `note` was called."""
        iterator, source = self._iterator, self._source
        # With steps_per_epoch a pass goes on from one epoch to the next.
        spans = iterator.steps_per_epoch is not None and iterator._current_iterator is not None
        within = boundary in ("batch", "failure")
        under_way = source is not None and boundary != "end" and ((within and batch > 0) or spans)
        seen = self._noted[1] if boundary == "failure" else iterator._steps_seen
        seen = batch if within and not spans else seen
        position: dict[str, Any] = {}
        if source is not None:
            position = source.position(seen) if under_way else source.between()
        return {
            "position": position,
            "under_way": under_way,
            "steps_seen": seen,
            "batch": batch if within else 0,
            "num_batches": iterator._num_batches,
        }

    def resume(self, data: Mapping[str, Any], put_back: Callable[[], None] | None) -> None:
        """Go on where `capture` was taken when the next epoch asks for its first batch. When the data is there,
        `put_back` is called; without one, the random state is left as it is."""
        self._pending = (data, put_back)

    def resume_between(self, data: Mapping[str, Any]) -> None:
        """Go to where `capture` was taken now, with no pass under way."""
        assert self._source is not None
        self._source.resume_between(data["position"])

    # -- what the epoch iterator asks -------------------------------------------------------------

    def iterable(self, theirs: Callable[[], Any]) -> Any:
        """What is to be iterated; `theirs` gives what Keras would."""
        own = self._source.iterable() if self._source is not None else None
        found = theirs() if own is None else own
        if self._source is None or self.known or not _can_peek():
            return found
        self._ahead = Peekable(found)
        return self._ahead

    def delivering(self) -> None:
        """A batch is about to be asked for."""
        if self._source is not None:
            self._source.delivering()

    def enumerate(self, theirs: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """The steps of an epoch: as Keras counts them, or from the batch on that was resumed."""
        if self._pending is None:
            yield from theirs()
            return
        data, put_back = self._pending
        if data["batch"]:
            self._iterator.data_adapter.on_epoch_begin()
        streams = capture_rng() if put_back is None else {}
        self._go_to(data)
        if put_back is None:
            restore_rng(streams)
        else:
            put_back()
        self._pending = None
        yield from self._from(data["batch"]) if data["batch"] else theirs()

    def _go_to(self, data: Mapping[str, Any]) -> None:
        if not data["under_way"]:
            self.resume_between(data)
            return
        assert self._source is not None
        self._source.resume(data["position"])
        self._iterator._current_iterator = iter(self._iterator._get_iterator())
        self._iterator._steps_seen = data["steps_seen"]

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


def _can_peek() -> bool:
    """Whether Python can look at a batch before the step asks for it."""
    return bool(keras.config.backend() != "tensorflow")
