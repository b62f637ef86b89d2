"""Random states as plain values that can be compared and saved: of this process, and of single generators.

Finding the generators that a program keeps is `memory.py`'s work; when to put which back, `loader.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ckpt_core import streams
from ckpt_core.streams import NUMPY, PYTHON, Stream

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


def _from_torch(state: torch.Tensor) -> bytes:
    return bytes(state.cpu().numpy().tobytes())


def _to_torch(value: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(value), dtype=torch.uint8)


STREAMS: dict[str, Stream] = {
    "python": PYTHON,
    "numpy": NUMPY,
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
    return isinstance(value, torch.Generator) or streams.is_generator(value)


def read_generator(generator: Any) -> Any:
    """The state of one generator, as a plain value."""
    if isinstance(generator, torch.Generator):
        return _from_torch(generator.get_state())
    return streams.stream_of(generator).read()


def write_generator(generator: Any, value: Any) -> None:
    """Put one generator into a state that `read_generator` gave."""
    if isinstance(generator, torch.Generator):
        generator.set_state(_to_torch(value))
    else:
        streams.stream_of(generator).write(value)
