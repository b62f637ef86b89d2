"""Saves without pause in a process of its own, which is killed at a random moment; again and again.

    python kill_saver.py FOLDER TRIALS SEED

Each trial is a fork of this process, so that it starts in no time. It acknowledges a save by one line in
`FOLDER/acknowledged`, written after `result()` has returned. Not a test itself.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from ckpt_core import CheckpointManager


def save_without_pause(folder: Path, seed: int, ready: int) -> None:
    """Until somebody ends it: synchronous and asynchronous saves that change a part of the state."""
    rng = np.random.default_rng(seed)
    acknowledged = os.open(folder / "acknowledged", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with CheckpointManager(folder / "store", experiment="digits", metric="loss") as manager:
        latest = manager.latest()
        step = latest.step if latest is not None else 0
        state = {"a": rng.random(30_000), "b": rng.random(64), "n": 0}
        os.write(ready, b"!")
        while True:
            step += 1
            state["b"][step % 64] = step
            state["n"] = step
            if step % 4 == 0:
                state["a"][:] = rng.random(30_000)
            tags = [f"t{step}"] if step % 5 == 0 else []
            handle = manager.save(
                state, step=step, metrics={"loss": 1 / step}, tags=tags, wait=bool(step % 3)
            )
            done = handle.result()
            line = f"{done.id} {step} {float(state['a'].sum()).hex()} {float(state['b'].sum()).hex()} {','.join(tags)}\n"
            os.write(acknowledged, line.encode())


def main() -> None:
    folder, trials, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    moments = random.Random(seed)
    with CheckpointManager(folder / "warm-up", experiment="warm-up") as manager:  # imports what a save needs
        manager.save({"a": np.zeros(3)}, step=1, wait=True)
    for trial in range(trials):
        ready, begun = os.pipe()
        child = os.fork()
        if child == 0:
            save_without_pause(folder, seed + trial, begun)
        os.close(begun)
        os.read(ready, 1)
        os.close(ready)
        time.sleep(moments.uniform(0, 0.12))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"trial {trial} ended by itself with {status}"


if __name__ == "__main__":
    main()
