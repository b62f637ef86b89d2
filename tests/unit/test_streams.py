"""Sources of random numbers: what was read puts them back, and is plain; equal states give equal values."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ckpt_core.streams import NUMPY, PYTHON, Stream, is_generator, stream_of
from ckpt_core.tree import flatten, registry

KINDS = ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"]
OWN = [
    *(np.random.Generator(getattr(np.random, kind)(3)) for kind in KINDS),
    np.random.RandomState(3),
    random.Random(3),
]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    yield
    random.setstate(python)
    np.random.set_state(numpy)


def draws(source: Any) -> list[float]:
    """Of every kind that keeps something back: words, halves of words, the second normal number of a pair."""
    if hasattr(source, "gauss"):
        return [source.random(), source.gauss(0, 1), source.getrandbits(5)]
    integers = getattr(source, "integers", None) or source.randint
    return [float(source.normal()), float(integers(0, 1 << 30)), float(source.normal(size=3)[2])]


def goes_back(stream: Stream, source: Any) -> None:
    for _ in range(3):  # also in the midst of a pair
        value = stream.read()
        assert stream.read() == value
        first = draws(source)
        assert stream.read() != value
        stream.write(value)
        assert stream.read() == value
        assert draws(source) == first


@pytest.mark.parametrize("source", OWN, ids=lambda each: type(getattr(each, "bit_generator", each)).__name__)
def test_one_of_its_own(source: Any) -> None:
    assert is_generator(source)
    goes_back(stream_of(source), source)


@pytest.mark.parametrize(
    ("stream", "source"), [(PYTHON, random), (NUMPY, np.random)], ids=["python", "numpy"]
)
def test_the_global_ones(stream: Stream, source: Any) -> None:
    source.seed(5)
    goes_back(stream, source)
    source.seed(5)
    begun = stream.read()
    draws(source)
    source.seed(5)
    assert stream.read() == begun, "whoever has put it back"


def test_numpys_own_source_may_be_another() -> None:
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(3))
    try:
        value = NUMPY.read()
        first = np.random.random(3).tolist()
        NUMPY.write(value)
        assert np.random.random(3).tolist() == first
    finally:
        np.random.set_bit_generator(before)


def test_a_normal_number_that_is_kept_back_counts() -> None:
    np.random.seed(5)
    np.random.normal()
    kept = NUMPY.read()
    np.random.normal()  # the second of the pair: no word has moved
    assert NUMPY.read() != kept


@pytest.mark.parametrize("stream", [PYTHON, NUMPY, *map(stream_of, OWN)])
def test_what_is_read_is_plain(stream: Stream) -> None:
    flatten({"value": stream.read()}, registry)  # has a codec for all of it

    def kinds(value: Any) -> set[type]:
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
        return {type(value)}.union(*map(kinds, inside))

    assert kinds(stream.read()) <= {dict, tuple, bytes, str, int, float, type(None)}
