"""A training loop with a state of many megabytes, told to end by SIGTERM; `test_preempted.py` runs it.

Arguments: the store, megabytes. It writes `begin`, `step N` for each step
made, and `ack STEP ID` for every checkpoint whose `result()` has returned.
"""

from __future__ import annotations

import sys

import numpy as np

from ckpt_core import CheckpointManager
from ckpt_core.session import Session

EVERY = 3


def fresh(megabytes: float) -> np.ndarray:
    """What the training starts from: made in no time, and no two chunks alike."""
    return np.arange(int(megabytes * (1 << 18)), dtype=np.uint32).view(np.uint8)


def main(root: str, megabytes: int) -> None:
    weights = fresh(megabytes)
    with CheckpointManager(root, experiment="preempted") as manager:
        session = Session(manager)
        resumption = session.resume()
        step = resumption.step
        if resumption.state is not None:
            weights = resumption.state["w"]
        session.begin(step)
        waiting = []
        print("begin", step, flush=True)
        while True:
            step += 1
            weights[step % len(weights) :: 1 << 12] += 1  # every page of it, and so every chunk, changes
            session.step_end(step)
            if step % EVERY == 0:
                session.request("every few steps")
            print("step", step, flush=True)
            handle = session.safe_point(step, None, lambda step=step: {"w": weights, "step": step})
            if handle is not None:
                waiting.append(handle)
            while waiting and waiting[0].done():
                print("ack", waiting[0].step, waiting[0].result().id, flush=True)
                waiting.pop(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
