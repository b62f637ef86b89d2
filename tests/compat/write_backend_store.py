"""Writes the frozen store of checkpoints by storage backends anew, for people:
`python tests/compat/write_backend_store.py FOLDER`.

What lies in `backend-files/` was written by this script when there first were backends, and is never written again.
"""

from __future__ import annotations

import datetime as dt
import sys
from typing import Any

import ml_dtypes
import numpy as np

from ckpt_core import CheckpointManager

EXPERIMENT = "digits 8x8"
BACKENDS = {100: "npz", 200: "safetensors"}


def state(step: int) -> dict[str, Any]:
    """The state of a step, the same on every machine."""
    tied = np.arange(5.0) + step
    return {
        "model": {
            "w": np.arange(600, dtype="f4").reshape(20, 30),
            "half": np.array([1.5, -2], ml_dtypes.bfloat16),
        },
        "tied": (tied, tied),
        "empty": np.zeros((0, 3), "u1"),
        "strange": np.array(["2026-11-25"], "M8[D]"),
        "when": dt.date(2026, 11, 25),
        "odd": {3: float("nan"), "large": 1 << 70, "names": {"a", "b"}},
        "step": step,
    }


def main(folder: str) -> None:
    """Writes the store."""
    for step, backend in BACKENDS.items():
        with CheckpointManager(
            folder, experiment=EXPERIMENT, backend=backend, chunk_bytes=4096, catalog="sqlite://"
        ) as manager:
            manager.save(state(step), step=step, wait=True)


if __name__ == "__main__":
    main(sys.argv[1])
