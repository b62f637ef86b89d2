"""Random states as plain values that can be compared and saved: of this process, and of single generators.

Finding the generators that a program keeps is `memory.py`'s work; when to put which back, `loader.py`'s.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = [
    "STREAMS",
    "capture_rng",
    "is_generator",
    "read_generator",
    "read_streams",
    "restore_rng",
    "write_generator",
    "write_streams",
]


@dataclass(frozen=True, slots=True)
class Stream:
    """One global source of random numbers in host memory. Equal values give equal numbers from then on."""

    read: Callable[[], Any]
    write: Callable[[Any], None]


def _from_python(state: tuple[Any, ...]) -> tuple[Any, ...]:
    version, words, gauss = state
    return (version, np.asarray(words, np.uint32).tobytes(), gauss)


def _to_python(value: Any) -> tuple[Any, ...]:
    version, words, gauss = value
    return (version, tuple(np.frombuffer(words, np.uint32).tolist()), gauss)


def _from_numpy(state: Any) -> Any:
    # numpy's state dicts differ from one bit generator to the next; arrays in them become bytes.
    if isinstance(state, Mapping):
        return {key: _from_numpy(item) for key, item in state.items()}
    if isinstance(state, np.ndarray):
        return (state.dtype.str, state.tobytes())
    return state.item() if isinstance(state, np.generic) else state


def _to_numpy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_numpy(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return np.frombuffer(value[1], value[0]).copy()
    return value


def _from_torch(state: torch.Tensor) -> bytes:
    return bytes(state.cpu().numpy().tobytes())


def _to_torch(value: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(value), dtype=torch.uint8)


class _PythonReader:
    """Reads python's generator; what is read again unchanged costs no conversion."""

    def __init__(self) -> None:
        self._raw: Any = None
        self._value: Any = None

    def __call__(self) -> Any:
        raw = random.getstate()
        if raw != self._raw:
            self._raw, self._value = raw, _from_python(raw)
        return self._value


class _NumpyReader:
    """Reads numpy's generator; as long as it did not move, from its memory, twenty times as fast."""

    def __init__(self) -> None:
        self._moved: Any = None
        self._value: Any = None

    def __call__(self) -> Any:
        generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if not isinstance(generator, np.random.MT19937):
            return _from_numpy(np.random.get_state(legacy=False))
        # 624 words and a position. The second half of a pair of normal numbers is not in there: while one
        # is kept, look at everything.
        moved = (id(generator), ctypes.string_at(generator.ctypes.state_address, 625 * 4))
        if moved != self._moved or self._value["has_gauss"]:
            self._moved, self._value = moved, _from_numpy(np.random.get_state(legacy=False))
        return self._value

    def write(self, value: Any) -> None:
        self._moved = None
        np.random.set_state(_to_numpy(value))


_numpy = _NumpyReader()
STREAMS: dict[str, Stream] = {
    "python": Stream(_PythonReader(), lambda value: random.setstate(_to_python(value))),
    "numpy": Stream(_numpy, _numpy.write),
    "torch": Stream(
        lambda: _from_torch(torch.get_rng_state()), lambda value: torch.set_rng_state(_to_torch(value))
    ),
}
"""The global generators of python, numpy and torch's CPU: what data loading draws from."""


def read_streams() -> dict[str, Any]:
    """The state of every stream, some tens of microseconds' work."""
    return {name: stream.read() for name, stream in STREAMS.items()}


def write_streams(values: Mapping[str, Any]) -> None:
    """Put streams back. Those not named stay as they are."""
    for name, value in values.items():
        STREAMS[name].write(value)


def capture_rng() -> dict[str, Any]:
    """The state of every global generator of this process: python, numpy, torch, and each accelerator.

    An accelerator that this process has not used yet is not woken up for it.
    """
    state = read_streams()
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = [_from_torch(each) for each in torch.cuda.get_rng_state_all()]
    if torch.backends.mps.is_available():
        state["mps"] = _from_torch(torch.mps.get_rng_state())
    return state


def restore_rng(state: Mapping[str, Any]) -> list[str]:
    """Put back what `capture_rng` gave. Returns what could not be, in words: devices that are not there."""
    write_streams({name: value for name, value in state.items() if name in STREAMS})
    missing: list[str] = []
    saved = state.get("cuda", [])
    there = torch.cuda.device_count() if saved and torch.cuda.is_available() else 0
    for index, value in enumerate(saved[:there]):
        torch.cuda.set_rng_state(_to_torch(value), index)
    if there < len(saved):
        missing.append(f"the random state of {len(saved) - there} CUDA device(s)")
    if "mps" in state:
        if torch.backends.mps.is_available():
            torch.mps.set_rng_state(_to_torch(state["mps"]))
        else:
            missing.append("the random state of the MPS device")
    return missing


def is_generator(value: object) -> bool:
    """Whether `value` is a source of random numbers of its own, apart from the global ones."""
    return isinstance(value, (torch.Generator, np.random.Generator, np.random.RandomState, random.Random))


def read_generator(generator: Any) -> Any:
    """The state of one generator, as a plain value."""
    if isinstance(generator, torch.Generator):
        return _from_torch(generator.get_state())
    if isinstance(generator, np.random.Generator):
        return _from_numpy(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return _from_numpy(generator.get_state(legacy=False))
    return _from_python(generator.getstate())


def write_generator(generator: Any, value: Any) -> None:
    """Put one generator into a state that `read_generator` gave."""
    if isinstance(generator, torch.Generator):
        generator.set_state(_to_torch(value))
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = _to_numpy(value)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(_to_numpy(value))
    else:
        generator.setstate(_to_python(value))
