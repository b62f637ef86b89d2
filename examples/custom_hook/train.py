"""A training that knows nothing of hooks. Those that `ckpt.toml` names are at work all the same.

cd examples/custom_hook && pip install . && python train.py && ckpt hooks
"""

from __future__ import annotations

import numpy as np

from ckpt_core import CheckpointManager

random = np.random.default_rng(0)
with CheckpointManager("checkpoints", experiment="example") as manager:
    for step in range(1, 6):
        handle = manager.save({"weights": random.random(100_000)}, step=step)
        manager.wait()
        print(step, handle.exception() or "saved")
