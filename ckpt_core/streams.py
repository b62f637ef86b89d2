"""The state of sources of random numbers, Python's and numpy's, as plain values that can be compared and saved.

For adapters. Nothing is drawn here, and what a framework has of its own is its adapter's.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "NUMPY", "PYTHON", "Stream", "from_numpy", "from_python", "is_generator", "stream_of", "to_numpy", "to_python",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stream:
    """One source. `read` gives plain values, equal for equal states; `write` takes them back."""

    read: Callable[[], Any]
    write: Callable[[Any], None]


def is_generator(value: object) -> bool:
    """Whether `value` is a source of Python's or numpy's of its own, apart from the global ones."""
    return isinstance(value, (np.random.Generator, np.random.RandomState, random.Random))


def stream_of(generator: Any) -> Stream:
    """Such a source as a stream."""
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        return Stream(lambda: from_numpy(bits.state), lambda value: setattr(bits, "state", to_numpy(value)))
    if isinstance(generator, np.random.RandomState):
        return Stream(
            lambda: from_numpy(generator.get_state(legacy=False)),
            lambda value: generator.set_state(to_numpy(value)),
        )
    return Stream(
        lambda: from_python(generator.getstate()), lambda value: generator.setstate(to_python(value))
    )


def from_python(state: tuple[Any, ...]) -> tuple[Any, ...]:
    """What `random.getstate` gives."""
    version, words, gauss = state
    return (version, np.asarray(words, np.uint32).tobytes(), gauss)


def to_python(value: Any) -> tuple[Any, ...]:
    """What `random.setstate` takes."""
    version, words, gauss = value
    return (version, tuple(np.frombuffer(words, np.uint32).tolist()), gauss)


def from_numpy(state: Any) -> Any:
    """What numpy's sources give: one kind's differs from another's; arrays in it become their bytes."""
    if isinstance(state, Mapping):
        return {key: from_numpy(item) for key, item in state.items()}
    if isinstance(state, np.ndarray):
        return (state.dtype.str, state.tobytes())
    return state.item() if isinstance(state, np.generic) else state


def to_numpy(value: Any) -> Any:
    """What they take."""
    if isinstance(value, Mapping):
        return {key: to_numpy(item) for key, item in value.items()}
    return np.frombuffer(value[1], value[0]).copy() if isinstance(value, tuple) else value


class _PythonReader:
    """Reads Python's source; what is read again unchanged costs no conversion."""

    def __init__(self) -> None:
        self._last: tuple[Any, Any] = (None, None)  # one object, as several threads may read

    def __call__(self) -> Any:
        raw, last = random.getstate(), self._last
        if raw != last[0]:
            last = self._last = (raw, from_python(raw))
        return last[1]


class _NumpyReader:
    """Reads numpy's source; as long as it did not move, from its memory, twenty times as fast."""

    def __init__(self) -> None:
        self._last: tuple[Any, Any] = (None, None)

    def __call__(self) -> Any:
        generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if not isinstance(generator, np.random.MT19937):
            return from_numpy(np.random.get_state(legacy=False))
        # 624 words and a position. The second half of a pair of normal numbers is not in there: while one
        # is kept, look at everything.
        moved, last = (id(generator), ctypes.string_at(generator.ctypes.state_address, 625 * 4)), self._last
        if moved != last[0] or last[1]["has_gauss"]:
            last = self._last = (moved, from_numpy(np.random.get_state(legacy=False)))
        return last[1]

    def write(self, value: Any) -> None:
        self._last = (None, None)
        np.random.set_state(to_numpy(value))


_numpy = _NumpyReader()
PYTHON = Stream(_PythonReader(), lambda value: random.setstate(to_python(value)))
"""The global source of Python's `random`."""
NUMPY = Stream(_numpy, _numpy.write)
"""The global source of `numpy.random`."""
