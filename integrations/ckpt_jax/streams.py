"""Sources of random numbers of the host that data pipelines draw from: the process's own, and generators.

JAX's keys are values like any other and belong into the state; they are not here.
"""

from __future__ import annotations

import random
import sys
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Stream", "global_streams", "is_generator", "stream_of"]


@dataclass(frozen=True, slots=True)
class Stream:
    """One source. `read` gives plain values, equal for equal states; `write` takes them back."""

    read: Callable[[], Any]
    write: Callable[[Any], None]


def is_generator(value: object) -> bool:
    """Whether `value` is a source of its own, apart from the global ones."""
    return isinstance(value, (np.random.Generator, np.random.RandomState, random.Random))


def stream_of(generator: Any) -> Stream:
    """A generator as a stream."""
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        return Stream(lambda: _plain(bits.state), lambda value: setattr(bits, "state", _array(value)))
    if isinstance(generator, np.random.RandomState):
        return Stream(
            lambda: _plain(generator.get_state(legacy=False)),
            lambda value: generator.set_state(_array(value)),
        )
    return Stream(lambda: _packed(generator.getstate()), lambda value: generator.setstate(_unpacked(value)))


def global_streams() -> dict[str, Stream]:
    """Those of this process: Python's, numpy's, and PyTorch's for the CPU if somebody has imported it."""
    streams = {
        "python": Stream(lambda: _packed(random.getstate()), lambda value: random.setstate(_unpacked(value))),
        "numpy": Stream(
            lambda: _plain(np.random.get_state(legacy=False)),
            lambda value: np.random.set_state(_array(value)),
        ),
    }
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_rng_state"):
        streams["torch"] = Stream(
            lambda: torch.get_rng_state().numpy().tobytes(),
            lambda value: torch.set_rng_state(torch.frombuffer(bytearray(value), dtype=torch.uint8)),
        )
    return streams


def _packed(state: tuple[Any, ...]) -> tuple[Any, ...]:
    version, words, gauss = state
    return (version, array("I", words).tobytes(), gauss)


def _unpacked(value: Any) -> tuple[Any, ...]:
    version, words, gauss = value
    return (version, tuple(array("I", words)), gauss)


def _plain(state: Any) -> Any:
    """The state of one of numpy's generators; arrays in it become their bytes, which can be compared."""
    if isinstance(state, Mapping):
        return {key: _plain(item) for key, item in state.items()}
    if isinstance(state, np.ndarray):
        return (state.dtype.str, state.tobytes())
    return state.item() if isinstance(state, np.generic) else state


def _array(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _array(item) for key, item in value.items()}
    return np.frombuffer(value[1], value[0]).copy() if isinstance(value, tuple) else value
