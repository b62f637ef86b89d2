"""Sources of random numbers that a Keras training draws from: Python's, numpy's, the backend's, Keras' own.

The seeds of layers are variables of the model and belong to `state.py`. No framework is imported here that the
program has not loaded itself.
"""

from __future__ import annotations

import ctypes
import logging
import random
import sys
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckpt_keras.codec import host_array

__all__ = ["Stream", "capture_rng", "host_streams", "is_generator", "reseed", "restore_rng", "stream_of"]

_log = logging.getLogger("ckpt_core.keras")


@dataclass(frozen=True, slots=True)
class Stream:
    """One source. `read` gives plain values, equal for equal states; `write` takes them back."""

    read: Callable[[], Any]
    write: Callable[[Any], None]


def host_streams() -> dict[str, Stream]:
    """What loading of data draws from: Python's generator, numpy's, PyTorch's for the CPU if it is loaded."""
    streams = {"python": _PYTHON, "numpy": _NUMPY}
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_rng_state"):
        streams["torch"] = Stream(
            lambda: torch.get_rng_state().numpy().tobytes(),
            lambda value: torch.set_rng_state(_torch_state(torch, value)),
        )
    return streams


def capture_rng(streams: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The state of every source of this process. `streams`: what the host's were a moment ago, if not now."""
    state = dict(streams) if streams is not None else {n: s.read() for n, s in host_streams().items()}
    state |= {name: stream.read() for name, stream in _backend_streams().items()}
    seeds = _global_seeds(make=False)
    if seeds is not None:
        state["keras"] = stream_of(seeds).read()
    return state


def restore_rng(state: Mapping[str, Any]) -> None:
    """Puts back what `capture_rng` gave. What cannot be is told in the log."""
    if "keras" in state:  # first, as it may have to be made, which draws from Python's generator
        stream_of(_global_seeds(make=True)).write(state["keras"])
    if "tensorflow-generator" in state and "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.get_global_generator()
    there = _backend_streams() | host_streams()
    for name, value in state.items():
        if name in there:
            there[name].write(value)
        elif name != "keras":
            _log.warning("the random state of %s is in the checkpoint, but there is no such thing here", name)


def is_generator(value: object) -> bool:
    """Whether `value` is a source of its own, apart from the global ones."""
    if isinstance(value, (np.random.Generator, np.random.RandomState, random.Random)):
        return True
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    if keras is not None and isinstance(value, keras.random.SeedGenerator):
        return True
    return torch is not None and isinstance(value, torch.Generator)


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
    if isinstance(generator, random.Random):
        return Stream(
            lambda: _packed(generator.getstate()), lambda value: generator.setstate(_unpacked(value))
        )
    if hasattr(generator, "get_state"):
        torch = sys.modules["torch"]
        return Stream(
            lambda: generator.get_state().numpy().tobytes(),
            lambda value: generator.set_state(_torch_state(torch, value)),
        )
    variable = generator.state
    return Stream(
        lambda: _plain(host_array(variable.value)),
        lambda value: variable.assign(_array(value)),
    )


def reseed(generator: Any, seed: int) -> None:
    """Begins a generator anew, as one of its kind that was made with this seed of up to 32 bits."""
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        bits.state = type(bits)(seed).state
    elif isinstance(generator, (np.random.RandomState, random.Random)):
        generator.seed(seed)
    elif hasattr(generator, "manual_seed"):
        generator.manual_seed(seed)
    else:
        generator.state.assign(np.array([seed & 0x7FFFFFFF, 0]))


def _backend_streams() -> dict[str, Stream]:
    """The backend's generators beside those of the host: accelerators', TensorFlow's. None is woken up."""
    streams: dict[str, Stream] = {}
    torch, tensorflow = sys.modules.get("torch"), sys.modules.get("tensorflow")
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        streams["cuda"] = Stream(
            lambda: [each.numpy().tobytes() for each in torch.cuda.get_rng_state_all()],
            lambda value: torch.cuda.set_rng_state_all([_torch_state(torch, each) for each in value]),
        )
    if tensorflow is not None and hasattr(tensorflow, "random"):
        streams |= _tensorflow_streams(tensorflow)
    return streams


def _tensorflow_streams(tensorflow: Any) -> dict[str, Stream]:
    from tensorflow.python.eager import context
    from tensorflow.python.ops import stateful_random_ops

    def read() -> Any:
        # The seed that was set, and the generator that gives each operation its own after that.
        at = context.context()
        rng: Any = getattr(at, "_rng", None)
        return None if at._seed is None else {"seed": int(at._seed), "rng": _packed(rng.getstate())}

    def write(value: Any) -> None:
        at = context.context()
        if value is None:
            return
        if at._seed != value["seed"]:
            tensorflow.random.set_seed(value["seed"])
        at._rng.setstate(_unpacked(value["rng"]))

    streams = {"tensorflow": Stream(read, write)}
    shared = getattr(stateful_random_ops, "global_generator", None)
    if shared is not None:
        streams["tensorflow-generator"] = Stream(
            lambda: _plain(shared.state.numpy()), lambda value: shared.state.assign(_array(value))
        )
    return streams


def _global_seeds(*, make: bool) -> Any:
    """Keras' global seed generator, from which everything draws that was given no seed; None if there is none."""
    from keras.src.backend.common import global_state
    from keras.src.random import seed_generator

    found = global_state.get_global_attribute("global_seed_generator")
    return seed_generator.global_seed_generator() if found is None and make else found


def _packed(state: tuple[Any, ...]) -> tuple[Any, ...]:
    version, words, gauss = state
    return (version, array("I", words).tobytes(), gauss)


def _unpacked(value: Any) -> tuple[Any, ...]:
    version, words, gauss = value
    return (version, tuple(array("I", words)), gauss)


def _plain(state: Any) -> Any:
    """numpy's state as plain values; arrays in it become their bytes, which can be compared."""
    if isinstance(state, Mapping):
        return {key: _plain(item) for key, item in state.items()}
    if isinstance(state, np.ndarray):
        return (state.dtype.str, state.tobytes())
    return state.item() if isinstance(state, np.generic) else state


def _array(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _array(item) for key, item in value.items()}
    return np.frombuffer(value[1], value[0]).copy() if isinstance(value, tuple) else value


class _PythonReader:
    """Reads Python's generator; what is read again unchanged costs no conversion."""

    def __init__(self) -> None:
        self._raw: Any = None
        self._value: Any = None

    def __call__(self) -> Any:
        raw = random.getstate()
        if raw != self._raw:
            self._raw, self._value = raw, _packed(raw)
        return self._value


class _NumpyReader:
    """Reads numpy's generator; as long as it did not move, from its memory, many times as fast."""

    def __init__(self) -> None:
        self._moved: Any = None
        self._value: Any = None

    def __call__(self) -> Any:
        generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if not isinstance(generator, np.random.MT19937):
            return _plain(np.random.get_state(legacy=False))
        # 624 words and a position. The second half of a pair of normal numbers is not in there: while one is
        # kept, look at everything.
        moved = (id(generator), ctypes.string_at(generator.ctypes.state_address, 625 * 4))
        if moved != self._moved or self._value["has_gauss"]:
            self._moved, self._value = moved, _plain(np.random.get_state(legacy=False))
        return self._value

    def write(self, value: Any) -> None:
        self._moved = None
        np.random.set_state(_array(value))


def _torch_state(torch: Any, value: bytes) -> Any:
    return torch.frombuffer(bytearray(value), dtype=torch.uint8)


_numpy = _NumpyReader()
_PYTHON = Stream(_PythonReader(), lambda value: random.setstate(_unpacked(value)))
_NUMPY = Stream(_numpy, _numpy.write)
