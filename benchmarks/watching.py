"""How fast the watchers look at a state of 200 MB: `python -m benchmarks.watching` prints the table of its page.

One core, the state in memory, that of the checkpoint before too: what reading it from a store costs is `load`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import ml_dtypes
import numpy as np

from ckpt_core.model import TensorSpec
from ckpt_core.tree import dtypes
from ckpt_core.watch.earlier import EarlierTensor
from ckpt_core.watch.grids import measure_grid
from ckpt_core.watch.health import measure_health
from ckpt_core.watch.quaternions import measure_quaternions

BYTES = 200 << 20
ROUNDS = 3
DTYPES = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float8": ml_dtypes.float8_e4m3fn,
}


def main() -> None:
    """Prints GB/s of the best of some rounds, for each watcher and dtype."""
    print("| | " + " | ".join(DTYPES) + " |\n|---|" + "---|" * len(DTYPES))
    for name, look in looks().items():
        for beside in (False, True):
            speeds = [speed(look, dtype, beside) for dtype in DTYPES.values()]
            print(
                f"| {name}{', compared' if beside else ''} | "
                + " | ".join(f"{each:.2f}" for each in speeds)
                + " |"
            )


def looks() -> dict[str, Callable[[np.ndarray, EarlierTensor | None], object]]:
    """What is measured: each takes the flat values and those before."""
    return {
        "tensor health": lambda flat, before: measure_health(flat, before),
        "quaternions": lambda flat, before: measure_quaternions(flat, before),
        "grid": lambda flat, before: measure_grid(flat, before),
    }


def speed(look: Callable[[np.ndarray, EarlierTensor | None], object], dtype: type, beside: bool) -> float:
    """GB of the state looked at in a second."""
    count = BYTES // np.dtype(dtype).itemsize
    part = np.random.default_rng(5).normal(size=1 << 20).astype(dtype)
    flat = np.resize(part, count)
    values = flat.reshape(-1, 4) if "quaternions" in look.__code__.co_names[0] else flat.reshape(-1, 1024)
    before = in_memory(values.copy()) if beside else None
    best = min(timed(look, values, before) for _ in range(ROUNDS))
    return BYTES / best / 1e9


def in_memory(values: np.ndarray) -> EarlierTensor:
    """As the checkpoint before gives it."""
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    spec = TensorSpec(dtypes.name_of_numpy(values.dtype) or str(values.dtype), values.shape)
    return EarlierTensor(spec, lambda begin, end: data[begin:end])


def timed(
    look: Callable[[np.ndarray, EarlierTensor | None], object],
    values: np.ndarray,
    before: EarlierTensor | None,
) -> float:
    """Seconds of a core that one look takes: others at work beside it do not count."""
    begun = time.process_time()
    look(values, before)
    return time.process_time() - begun


if __name__ == "__main__":
    main()
