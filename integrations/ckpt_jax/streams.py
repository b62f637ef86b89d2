"""Sources of random numbers of the host that data pipelines draw from: the process's own.

JAX's keys are values like any other and belong into the state; they are not here.
"""

from __future__ import annotations

import sys

from ckpt_core.streams import NUMPY, PYTHON, Stream

__all__ = ["global_streams"]


def global_streams() -> dict[str, Stream]:
    """Those of this process: Python's, numpy's, and PyTorch's for the CPU if somebody has imported it."""
    streams = {"python": PYTHON, "numpy": NUMPY}
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_rng_state"):
        streams["torch"] = Stream(
            lambda: torch.get_rng_state().numpy().tobytes(),
            lambda value: torch.set_rng_state(torch.frombuffer(bytearray(value), dtype=torch.uint8)),
        )
    return streams
