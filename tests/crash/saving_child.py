"""A program that saves without pause until it is killed; `test_kill.py` runs it.

It imports everything once and then forks for every line it reads, so that two hundred deaths cost little.
A line is JSON: `{"root": …, "seed": …, "mode": …}`. Each child writes to the pipe on descriptor `out`:
`begin`, and `ack STEP ID` for every checkpoint whose `result()` has returned.
"""

from __future__ import annotations

import json
import os
import random
import sys
from typing import Any

import numpy as np

from ckpt_core import CheckpointManager, KeepBest, KeepLast

KEEP = 3
SHARED = np.arange(6_000)


def state_of(step: int) -> dict[str, Any]:
    """What the loop saves at a step: something that never changes, and something that does."""
    return {"shared": SHARED, "mine": np.full(2_000, step), "step": step}


def options_of(mode: str) -> dict[str, Any]:
    options: dict[str, Any] = {"experiment": "killed", "metric": "loss"}
    if "retention" in mode:
        options["retention"] = [KeepLast(KEEP), KeepBest(1)]
    if "pending" in mode:
        options["max_pending"] = 3
    return options


def loop(root: str, seed: int, mode: str, out: int) -> None:
    def say(text: str) -> None:
        os.write(out, f"{text}\n".encode())

    chance = random.Random(seed)
    say("begin")
    manager = CheckpointManager(root, **options_of(mode))
    if manager.latest() is not None:
        manager.load()
    step = 0 if manager.loaded is None else manager.loaded.step
    waiting: list[Any] = []
    while True:
        step += 1
        manager.log({"train": step}, step=step)
        tags = [f"t{step % 4}"] if chance.random() < 0.3 else []
        handle = manager.save(
            state_of(step), step=step, metrics={"loss": chance.random()}, tags=tags, wait="sync" in mode
        )
        waiting.append(handle)
        while waiting and (len(waiting) > 2 or waiting[0].done()):
            say(f"ack {waiting[0].step} {waiting[0].result().id}")
            waiting.pop(0)


def warm_up() -> None:
    """Once through everything, so that what is imported late is there before the fork."""
    with CheckpointManager("memory://", retention=[KeepLast(1)], **options_of("sync")) as manager:
        for step in (1, 2):
            manager.save(state_of(step), step=step, metrics={"loss": 0.5}, tags=["t"], wait=True)
        manager.load()


def main() -> None:
    warm_up()
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            out = os.open(task["pipe"], os.O_WRONLY)
            try:
                loop(task["root"], task["seed"], task["mode"], out)
            finally:
                os.write(out, b"ended by itself\n")
                os._exit(1)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
