"""How each kind of data that `fit` takes keeps a position: which mechanism, and where it is put in.

One `Source` for the training data of one fit. It is put into Keras' data adapter, in the place of what that one
would iterate, and taken out again. Written against Keras 3.11 to 3.15, whose adapters are private.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import keras
import numpy as np
from keras.src.trainers import data_adapters as adapters

from ckpt_keras.codec import host_array
from ckpt_keras.feeds import Feed, ResumeData
from ckpt_keras.memory import Memory

__all__ = ["Source", "held_by", "source_of"]

_log = logging.getLogger("ckpt_core.keras.data")
Position = dict[str, Any]


class Source(Protocol):
    """Data with a position. `delivered` counts the batches of the present pass that were trained on."""

    kind: str

    def held(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which nothing is fetched."""

    def position(self, delivered: int) -> Position:
        """Where the present pass stands."""

    def between(self) -> Position:
        """How things stand when no pass is under way, however far the last one came."""

    def resume(self, position: Mapping[str, Any]) -> None:
        """The next pass goes on where `position` was taken; draws from global generators for it."""

    def resume_between(self, position: Mapping[str, Any]) -> None:
        """Back to where `between` was taken."""

    def iterable(self) -> Any:
        """What Keras is to iterate in the place of its own; None where that is what it does already."""

    def delivering(self) -> None:
        """A batch is about to be asked for."""

    def remove(self) -> None:
        """Leave the adapter as it was."""


def source_of(epochs: Any, *, resume_data: ResumeData, peeks: bool = False) -> Source:
    """The source for an epoch iterator of Keras. It takes its place in the adapter at once.

    `peeks`: a batch may be fetched before it is trained on.
    """
    adapter = epochs.data_adapter
    backend, ahead = keras.config.backend(), peeks or _lookahead()
    if isinstance(adapter, adapters.TorchDataLoaderAdapter):
        return _LoaderSource(adapter, "_dataloader", adapter._dataloader, resume_data, ahead)
    if isinstance(adapter, adapters.PyDatasetAdapter):
        return _py_dataset(epochs, adapter, resume_data, ahead)
    if isinstance(adapter, adapters.GeneratorDataAdapter):
        return _generator(adapter, resume_data, ahead)
    if backend == "tensorflow":
        return _PipelineSource(epochs, isinstance(adapter, adapters.ArrayDataAdapter))
    if isinstance(adapter, adapters.TFDatasetAdapter):
        dataset = adapter._dataset
        feed = Feed(
            lambda number, first: iter(dataset), dataset, name="data", skippable=False, resume_data=resume_data,
            lookahead=ahead, make_up=lambda passes: _begin_and_drop(dataset, passes),
        )  # fmt: skip
        feed.memory = Memory({})  # nothing of it is Python's
        return _FeedSource(adapter, {"_dataset": feed}, feed)
    if backend == "torch":
        loader = adapter.get_torch_dataloader()
        return _LoaderSource(adapter, "get_torch_dataloader", loader, resume_data, ahead, call=True)
    original = adapter.get_jax_iterator
    data = None if isinstance(adapter, adapters.ArrayDataAdapter) else adapter
    feed = Feed(
        lambda number, first: iter(original()), data, name="data", skippable=False, resume_data=resume_data,
        lookahead=ahead,
    )  # fmt: skip
    return _FeedSource(adapter, {"get_jax_iterator": lambda: iter(feed)}, feed)


def held_by(data: Any) -> Memory:
    """What validation data remembers from one evaluation to the next."""
    arrays = isinstance(data, (tuple, list)) or hasattr(data, "shape")
    return Memory(
        {} if data is None or arrays or hasattr(data, "element_spec") else {"validation data": data}
    )


def _lookahead() -> bool:
    """Whether batches are fetched before they are trained on, as they are unless it would be of no use."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        plain = keras.distribution.distribution() is None and jax.default_backend() == "cpu"
        return not plain or _version() < (3, 15)
    return bool(backend == "tensorflow")


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in keras.__version__.split(".")[:2])


def _begin_and_drop(dataset: Any, passes: int) -> None:
    for _ in range(passes):  # each gives a shuffle its next order
        iter(dataset)


class _FeedSource:
    """Data that is iterated in Python."""

    kind = "feed"

    def __init__(
        self, adapter: Any, places: Mapping[str, Any], feed: Feed, end: Callable[[], None] | None = None
    ) -> None:
        self.feed = feed
        self._end = end
        self._patch = _Patch(adapter, places)

    def held(self) -> contextlib.AbstractContextManager[Any]:
        return self.feed.held()

    def position(self, delivered: int) -> Position:
        if delivered == 0:  # a pass begins when its first batch is asked for
            return self.between()
        return {"begun": True, **self.feed.position(delivered)}

    def between(self) -> Position:
        return {"begun": False, **self.feed.between()}

    def resume(self, position: Mapping[str, Any]) -> None:
        if position["begun"]:
            self.feed.resume(position)
        else:
            self.feed.resume_between(position)

    def resume_between(self, position: Mapping[str, Any]) -> None:
        self.feed.resume_between(position)

    def iterable(self) -> Any:
        return None

    def delivering(self) -> None:
        return

    def remove(self) -> None:
        if self._end is not None:
            self._end()
        self._patch.remove()


def _py_dataset(epochs: Any, adapter: Any, resume_data: ResumeData, ahead: bool) -> Source:
    dataset = adapter.py_dataset
    name = f"data ({type(dataset).__name__})"
    places: dict[str, Any] = {}
    enqueuer: Any = None
    if adapter.enqueuer is not None:
        from ckpt_keras.enqueuer import TrackedEnqueuer

        enqueuer = TrackedEnqueuer(dataset, shuffle=adapter.shuffle, name=name)
        places["enqueuer"] = enqueuer

    def open_pass(number: int, first: int) -> Iterator[Any]:
        if enqueuer is not None:
            return map(adapter._standardize_batch, enqueuer.batches(number, first))
        if dataset.num_batches is None:
            indices: Iterator[int] = itertools.count(first)
        else:
            order = list(range(dataset.num_batches))
            if adapter.shuffle:
                random.shuffle(order)
            indices = iter(order[first:])
        return (adapter._standardize_batch(dataset[index]) for index in indices)

    feed = Feed(
        open_pass, dataset, name=name, skippable=True, resume_data=resume_data,
        lookahead=ahead,
    )  # fmt: skip
    places["_get_iterator"] = lambda: feed
    source = _FeedSource(adapter, places, feed, end=enqueuer.halt if enqueuer is not None else None)
    if keras.config.backend() == "tensorflow":
        _make_dataset_again(epochs)
    return source


def _make_dataset_again(epochs: Any) -> None:
    """TensorFlow holds on to the function that it was given."""
    dataset = epochs.data_adapter.get_tf_dataset()
    epochs._distributed_dataset = epochs._distribute_strategy.experimental_distribute_dataset(dataset)


def _generator(adapter: Any, resume_data: ResumeData, ahead: bool) -> Source:
    original: Callable[[], Iterator[Any]] = adapter.generator
    cells = zip(original.__code__.co_freevars, original.__closure__ or (), strict=True)
    theirs = {name: cell.cell_contents for name, cell in cells}.get("generator")

    def exhaust(passes: int) -> None:
        # Keras looks at the first batches before the fit begins, and each pass begins with those and goes on
        # with what the generator has left: nothing, if a pass has come to its end.
        collections.deque(original(), maxlen=0)

    feed = Feed(
        lambda number, first: iter(original()), theirs, name="data (a generator)", skippable=False,
        resume_data=resume_data, lookahead=ahead, make_up=exhaust,
    )  # fmt: skip
    return _GeneratorSource(adapter, feed)


class _GeneratorSource(_FeedSource):
    """A generator: of what it drew before the fit began nothing is known but what came of it."""

    def __init__(self, adapter: Any, feed: Feed) -> None:
        super().__init__(adapter, {"generator": lambda: feed}, feed)
        self._first = _digest(adapter._first_batches)

    def position(self, delivered: int) -> Position:
        return {**super().position(delivered), "first": self._first}

    def between(self) -> Position:
        return {**super().between(), "first": self._first}

    def resume(self, position: Mapping[str, Any]) -> None:
        self._compare(position)
        super().resume(position)

    def resume_between(self, position: Mapping[str, Any]) -> None:
        self._compare(position)
        super().resume_between(position)

    def _compare(self, position: Mapping[str, Any]) -> None:
        if position["first"] != self._first:
            _log.warning(
                "%s does not begin as it did in the training that is resumed, and cannot be gone back in: seed what "
                "it draws from before fit, or the data will not be the same",
                self.feed.name,
            )


def _digest(batches: Any) -> str:
    digest = hashlib.sha256()
    for each in keras.tree.flatten(batches):
        if each is not None:
            digest.update(np.ascontiguousarray(host_array(each)).tobytes())
    return digest.hexdigest()


class _LoaderSource:
    """A DataLoader of PyTorch's, or what Keras makes one of on PyTorch."""

    kind = "loader"

    def __init__(
        self,
        adapter: Any,
        place: str,
        loader: Any,
        resume_data: ResumeData,
        ahead: bool,
        *,
        call: bool = False,
    ) -> None:
        from ckpt_torch import TrackedLoader

        tracked = TrackedLoader(loader, name="data", resume_data=resume_data, lookahead=2 * ahead)
        self._tracked = tracked
        self._patch = _Patch(adapter, {place: (lambda: tracked) if call else tracked})

    def held(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def position(self, delivered: int) -> Position:
        tracked = self._tracked
        return dict(tracked.position(ahead=max(0, tracked.delivered - delivered)))

    def between(self) -> Position:
        return dict(self._tracked.position(between=True))

    def resume(self, position: Mapping[str, Any]) -> None:
        self._tracked.resume(position)
        self._tracked.go()

    def resume_between(self, position: Mapping[str, Any]) -> None:
        self._tracked.resume(position)

    def iterable(self) -> Any:
        return None

    def delivering(self) -> None:
        return

    def remove(self) -> None:
        self._patch.remove()


class _PipelineSource:
    """What TensorFlow iterates by itself."""

    kind = "pipeline"

    def __init__(self, epochs: Any, arrays: bool) -> None:
        from ckpt_keras.pipeline import Pipeline

        self._pipeline = Pipeline(epochs, "data", arrays=arrays)

    def held(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def position(self, delivered: int) -> Position:
        return self._pipeline.position(delivered)

    def between(self) -> Position:
        return self._pipeline.position(0)

    def resume(self, position: Mapping[str, Any]) -> None:
        self._pipeline.resume(position)

    def resume_between(self, position: Mapping[str, Any]) -> None:
        self._pipeline.resume(position)

    def iterable(self) -> Any:
        return self._pipeline

    def delivering(self) -> None:
        self._pipeline.delivering()

    def remove(self) -> None:
        return


class _Patch:
    """Attributes of one object, set until `remove`."""

    def __init__(self, owner: Any, attributes: Mapping[str, Any]) -> None:
        self._owner = owner
        self._before = {name: vars(owner).get(name, _ABSENT) for name in attributes}
        for name, value in attributes.items():
            setattr(owner, name, value)

    def remove(self) -> None:
        for name, value in self._before.items():
            if value is _ABSENT:
                vars(self._owner).pop(name, None)
            else:
                setattr(self._owner, name, value)


_ABSENT = object()
