"""Data in the middle of which one stops: the feed goes back to where it was, whatever the data is made of."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import grain
import jax
import numpy as np
import pytest

from ckpt_core import UsageError
from ckpt_jax.data import Feed
from ckpt_jax.streams import global_streams

COUNT, SIZE = 24, 4
Batch = list[float]


class Shuffled:
    """With a generator of its own that goes on from epoch to epoch."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(5)

    def __iter__(self) -> Iterator[Batch]:
        order = self.rng.permutation(COUNT)
        for begin in range(0, COUNT, SIZE):
            yield [*order[begin : begin + SIZE], self.rng.random()]


class InPlace(Shuffled):
    """Shuffles one order again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.order = np.arange(COUNT)
        self.labels = np.arange(COUNT) % 3

    def __iter__(self) -> Iterator[Batch]:
        np.random.shuffle(self.order)
        for begin in range(0, COUNT, SIZE):
            yield [*self.order[begin : begin + SIZE], np.random.random()]


class PythonList(Shuffled):
    def __init__(self) -> None:
        super().__init__()
        self.order = list(range(COUNT))

    def __iter__(self) -> Iterator[Batch]:
        random.shuffle(self.order)
        for begin in range(0, COUNT, SIZE):
            yield [*self.order[begin : begin + SIZE], random.random()]


class Buffered:
    """Draws each batch from what is left, so that every draw has a part in all that follow."""

    def __iter__(self) -> Iterator[Batch]:
        left = list(range(COUNT))
        while left:
            yield [left.pop(np.random.randint(len(left))) for _ in range(SIZE)]


class Counting:
    """Seeds each epoch by its number."""

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[Batch]:
        self.epoch += 1
        order = np.random.default_rng(self.epoch).permutation(COUNT)
        return iter([list(order[begin : begin + SIZE]) for begin in range(0, COUNT, SIZE)])


class Keyed:
    """Splits a JAX key for each epoch."""

    def __init__(self) -> None:
        self.key = jax.random.key(3)

    def __iter__(self) -> Iterator[Batch]:
        self.key, here = jax.random.split(self.key)
        order = np.asarray(jax.random.permutation(here, COUNT))
        for begin in range(0, COUNT, SIZE):
            yield list(order[begin : begin + SIZE])


class Function:
    """Calls a function with a closure anew for each epoch."""

    def __init__(self, function: Callable[[], Iterator[Batch]]) -> None:
        self.function = function

    def __iter__(self) -> Iterator[Batch]:
        return self.function()


def closure() -> Function:
    rng, epoch = np.random.RandomState(8), 0

    def batches() -> Iterator[Batch]:
        nonlocal epoch
        epoch += 1
        order = rng.permutation(COUNT)
        for begin in range(0, COUNT, SIZE):
            yield [*order[begin : begin + SIZE], epoch]

    return Function(batches)


def endless() -> Iterator[Batch]:
    """A generator that is already there, and never ends."""
    rng = np.random.default_rng(2)
    while True:
        yield list(rng.permutation(COUNT)[:SIZE])


def grain_dataset() -> Any:
    return (
        grain.MapDataset.range(COUNT)
        .seed(4)
        .shuffle()
        .repeat(8)
        .random_map(_noisy)
        .batch(SIZE)
        .to_iter_dataset()
    )


def _noisy(x: int, rng: np.random.Generator) -> float:
    return float(x) + float(rng.random())


class Stateful:
    """Keeps its own position, as torchdata's loaders do."""

    def __init__(self) -> None:
        self.next = 0

    def __iter__(self) -> Iterator[Batch]:
        if self.next >= COUNT:
            self.next = 0
        while self.next < COUNT:
            self.next += SIZE
            yield [self.next]

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


MAKERS: dict[str, Callable[[], Any]] = {
    "list": lambda: [[float(i)] for i in range(6)],
    "own generator": Shuffled,
    "order shuffled in place": InPlace,
    "list shuffled in place": PythonList,
    "shuffle buffer": Buffered,
    "epoch counter": Counting,
    "jax key": Keyed,
    "closure": closure,
    "endless generator": endless,
    "grain": grain_dataset,
    "grain iterator": lambda: iter(grain_dataset()),
    "state_dict": Stateful,
}


def seed() -> None:
    np.random.seed(1)
    random.seed(2)


def draw() -> None:
    """The training loop draws from where the data may draw, too."""
    np.random.random()
    random.random()


def plain(batch: Any) -> list[float]:
    return [float(number) for number in np.asarray(batch).reshape(-1)]


def program(feed: Feed, passes: int, in_pass: int) -> list[list[float]]:
    """A training program of some passes of at most so many batches each."""
    seen = []
    for _ in range(passes):
        for batch in islice(iter(feed), in_pass):
            seen.append(plain(batch))
            draw()
    return seen


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("stop", [(0, 1), (0, 5), (1, 2), (2, 3)], ids=str)
def test_goes_on_where_it_stopped(name: str, stop: tuple[int, int]) -> None:
    """Stopped in pass `stop[0]` after `stop[1]` batches; a pass has 6, of data that does not end by itself."""
    make = MAKERS[name]
    seed()
    expected = program(Feed(make()), 4, 6)

    seed()
    feed = Feed(make())
    seen = program(feed, stop[0], 6)
    iterator = iter(feed)
    for _ in range(stop[1]):
        seen.append(plain(next(iterator)))
        draw()
    position = feed.position()
    streams = {name: stream.read() for name, stream in global_streams().items()}
    next(iterator)  # has no part in what was taken

    np.random.seed(99)
    resumed = Feed(make())
    resumed.resume(position)
    iterator = iter(resumed)
    for stream, state in streams.items():
        global_streams()[stream].write(state)
    for batch in islice(iterator, 6 - stop[1]):
        seen.append(plain(batch))
        draw()
    seen += program(resumed, 3 - stop[0], 6)

    assert seen == expected


@pytest.mark.parametrize("name", MAKERS)
def test_goes_on_between_two_passes(name: str) -> None:
    make = MAKERS[name]
    seed()
    expected = program(Feed(make()), 3, 6)

    seed()
    feed = Feed(make())
    seen = program(feed, 1, 6)
    position = feed.position(between=True)
    streams = {name: stream.read() for name, stream in global_streams().items()}

    np.random.seed(99)
    resumed = Feed(make())
    resumed.resume(position)
    for stream, state in streams.items():
        global_streams()[stream].write(state)
    assert seen + program(resumed, 2, 6) == expected


def test_a_position_that_was_resumed_is_saved_again_before_it_is_used() -> None:
    feed = Feed(Shuffled())
    next(iter(feed))
    position = feed.position()
    again = Feed(Shuffled())
    again.resume(position)
    assert again.position() == position


def test_settings_are_not_restored() -> None:
    """Only what has changed while it ran is a memory; that one resumes with another batch size is meant."""

    class Data(Counting):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.size = size

    feed = Feed(Data(4))
    next(iter(feed))
    other = Data(8)
    resumed = Feed(other)
    resumed.resume(feed.position(between=True))
    assert (other.size, other.epoch) == (8, 1)


def test_an_order_that_was_drawn_before_anybody_looked() -> None:
    class Drawn(Shuffled):
        def __init__(self) -> None:
            self.order = np.random.permutation(COUNT)

        def __iter__(self) -> Iterator[Batch]:
            return iter([list(self.order[begin : begin + SIZE]) for begin in range(0, COUNT, SIZE)])

    seed()
    first = Feed(Drawn())
    seen = [plain(next(iter(first)))]
    np.random.seed(77)
    resumed = Feed(Drawn())
    resumed.resume(first.position())
    seen += [plain(batch) for batch in iter(resumed)]
    assert seen == [plain(batch) for batch in first.data]


def test_labels_that_never_change_are_not_stored() -> None:
    feed = Feed(InPlace())
    for _ in feed:
        pass
    assert set(feed.position(between=True)["orders"]) == {"data.order"}


def test_data_of_another_kind_is_refused() -> None:
    feed = Feed(grain_dataset())
    next(iter(feed))
    resumed = Feed([[1.0]])
    resumed.resume(feed.position())
    with pytest.raises(UsageError, match="kept itself, and list does not"):
        iter(resumed)


def test_data_that_has_become_shorter_is_told(caplog: pytest.LogCaptureFixture) -> None:
    feed = Feed([[0.0], [1.0], [2.0]])
    for _ in islice(iter(feed), 3):
        pass
    resumed = Feed([[0.0]])
    resumed.resume(feed.position())
    assert list(resumed) == []
    assert "ended after 1 batches, before the position of the checkpoint (3)" in caplog.text
