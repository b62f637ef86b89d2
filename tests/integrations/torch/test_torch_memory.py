"""What objects of a data loader remember is found by looking, named as a person would, and put back."""

from __future__ import annotations

import functools
import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_torch.memory import Memory
from ckpt_torch.rng import (
    STREAMS,
    capture_rng,
    is_generator,
    read_generator,
    read_streams,
    restore_rng,
    write_generator,
)

GLOBAL = random.Random(1)
COUNT = 0


class Inner:
    def __init__(self) -> None:
        self.rng = np.random.default_rng(1)
        self.rate = 0.5


class Slotted:
    __slots__ = ("rng",)

    def __init__(self) -> None:
        self.rng = torch.Generator()


class Whole:
    def __init__(self) -> None:
        self.inner = Inner()
        self.parts = [Slotted(), {"deep": random.Random(2)}]
        self.calls = 0
        self.seen: list[int] = []
        self.tensor = torch.zeros(3)
        self.again = self.inner

    def __call__(self) -> float:
        global COUNT
        COUNT += 1
        return GLOBAL.random()


def closure() -> Any:
    rng, count = np.random.RandomState(3), itertools.count()
    return lambda: (rng.rand(), next(count))


def test_everything_is_found_once_under_its_path() -> None:
    memory = Memory({"dataset": Whole(), "collate_fn": functools.partial(closure(), scale=1)})
    module = __name__
    assert set(memory.generators) == {
        "dataset.inner.rng",
        "dataset.parts[0].rng",
        "dataset.parts[1]['deep']",
        f"{module}.GLOBAL",
        "collate_fn:rng",
    }
    assert memory.iterators == ("collate_fn:count",)
    numbers = memory.read_numbers()
    assert numbers["dataset.calls"] == 0
    assert numbers["dataset.inner.rate"] == 0.5
    assert numbers[f"{module}.COUNT"] == COUNT
    assert memory.sizes()["dataset.seen"] == 0


def test_generators_are_put_back_and_of_the_numbers_only_those_named() -> None:
    whole = Whole()
    memory = Memory({"dataset": whole})
    state = memory.read()
    drawn = whole.inner.rng.random(), GLOBAL.random()
    whole.calls, whole.inner.rate = 7, 0.9
    assert memory.write(state, numbers=frozenset({"dataset.calls"})) == []
    assert (whole.inner.rng.random(), GLOBAL.random()) == drawn
    assert (whole.calls, whole.inner.rate) == (0, 0.9)


def test_what_is_no_longer_there_is_named() -> None:
    state = Memory({"dataset": Whole()}).read()
    absent = Memory({"dataset": Slotted()}).write(state, numbers=frozenset({"dataset.calls"}))
    assert "dataset.inner.rng" in absent
    assert "dataset.calls" in absent


def test_global_generators_are_nobodys_own() -> None:
    class Uses:
        generator = torch.default_generator

        def __init__(self) -> None:
            self.generator = torch.default_generator
            self.random = random

    assert Memory({"dataset": Uses()}).generators == {}


def test_long_and_deep_structures_are_not_searched() -> None:
    deep: Any = random.Random(1)
    for _ in range(30):
        deep = [deep]
    memory = Memory({"dataset": {"long": [random.Random(1)] * 1000, "deep": deep}})
    assert memory.generators == {}
    assert memory.sizes()["dataset['long']"] == 1000


@pytest.mark.parametrize(
    "generator",
    [
        np.random.default_rng(1),
        np.random.Generator(np.random.Philox(1)),
        np.random.Generator(np.random.SFC64(1)),
        np.random.Generator(np.random.MT19937(1)),
        np.random.RandomState(1),
        random.Random(1),
        torch.Generator(),
    ],
    ids=lambda generator: type(getattr(generator, "bit_generator", generator)).__name__,
)
def test_each_kind_of_generator_comes_back(generator: Any) -> None:
    def draw() -> Any:
        if isinstance(generator, torch.Generator):
            return torch.rand(3, generator=generator).tolist()
        return [generator.random() for _ in range(3)]

    assert is_generator(generator)
    before = read_generator(generator)
    drawn = draw()
    assert read_generator(generator) != before
    write_generator(generator, before)
    assert read_generator(generator) == before
    assert draw() == drawn


def test_the_global_generators_come_back() -> None:
    def draw() -> Any:
        return random.gauss(0, 1), np.random.randn(), torch.rand(2).tolist()

    draw()  # half of a pair of normal numbers is kept for the next call
    state = capture_rng()
    assert set(state) >= set(STREAMS)
    drawn = draw()
    assert read_streams() != {name: state[name] for name in STREAMS}
    assert restore_rng(state) == []
    assert draw() == drawn


def test_half_a_pair_of_numpys_normal_numbers_is_not_overlooked() -> None:
    numpy_stream = STREAMS["numpy"]
    np.random.seed(1)
    np.random.randn()
    kept = numpy_stream.read()
    drawn = np.random.randn()  # the second half: the generator itself does not move
    spent = numpy_stream.read()
    assert (kept["has_gauss"], spent["has_gauss"]) == (1, 0)
    numpy_stream.write(kept)
    assert numpy_stream.read() == kept
    assert np.random.randn() == drawn


def test_a_device_that_is_not_there_is_named() -> None:
    state = capture_rng() | {"cuda": [b"", b""]}
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert restore_rng(state) == ["the random state of 2 CUDA device(s)"]
