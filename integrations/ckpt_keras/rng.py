"""Sources of random numbers that a Keras training draws from: Python's, numpy's, the backend's, Keras' own.

The seeds of layers are variables of the model and belong to `state.py`. No framework is imported here that the
program has not loaded itself.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from ckpt_core import streams as host
from ckpt_core.streams import NUMPY, PYTHON, Stream, from_numpy, from_python, to_numpy, to_python
from ckpt_keras.codec import host_array

__all__ = ["Stream", "capture_rng", "host_streams", "is_generator", "reseed", "restore_rng", "stream_of"]

_log = logging.getLogger("ckpt_core.keras")


def host_streams() -> dict[str, Stream]:
    """What loading of data draws from: Python's generator, numpy's, PyTorch's for the CPU if it is loaded."""
    streams = {"python": PYTHON, "numpy": NUMPY}
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
    if host.is_generator(value):
        return True
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    if keras is not None and isinstance(value, keras.random.SeedGenerator):
        return True
    return torch is not None and isinstance(value, torch.Generator)


def stream_of(generator: Any) -> Stream:
    """A generator as a stream."""
    if host.is_generator(generator):
        return host.stream_of(generator)
    if hasattr(generator, "get_state"):
        torch = sys.modules["torch"]
        return Stream(
            lambda: generator.get_state().numpy().tobytes(),
            lambda value: generator.set_state(_torch_state(torch, value)),
        )
    variable = generator.state
    return Stream(
        lambda: from_numpy(host_array(variable.value)),
        lambda value: variable.assign(to_numpy(value)),
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
        return None if at._seed is None else {"seed": int(at._seed), "rng": from_python(rng.getstate())}

    def write(value: Any) -> None:
        at = context.context()
        if value is None:
            return
        if at._seed != value["seed"]:
            tensorflow.random.set_seed(value["seed"])
        at._rng.setstate(to_python(value["rng"]))

    streams = {"tensorflow": Stream(read, write)}
    shared = getattr(stateful_random_ops, "global_generator", None)
    if shared is not None:
        streams["tensorflow-generator"] = Stream(
            lambda: from_numpy(shared.state.numpy()), lambda value: shared.state.assign(to_numpy(value))
        )
    return streams


def _global_seeds(*, make: bool) -> Any:
    """Keras' global seed generator, from which everything draws that was given no seed; None if there is none."""
    from keras.src.backend.common import global_state
    from keras.src.random import seed_generator

    found = global_state.get_global_attribute("global_seed_generator")
    return seed_generator.global_seed_generator() if found is None and make else found


def _torch_state(torch: Any, value: bytes) -> Any:
    return torch.frombuffer(bytearray(value), dtype=torch.uint8)
