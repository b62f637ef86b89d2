"""Eight processes that save, load, forget and prune on one store, as fast as they can; `test_many_processes` runs
it: `hammer.py ROOT SECONDS SEED`. Now and then one is killed, and another takes its place.

Each process writes what it did to a file of its own, a line each, before it goes on:
`in EXPERIMENT`, `save ID STEP` (acknowledged), `forget ID` (about to), `undelete ID`, `read`, `prune PACKS`, `locked`, `done`,
`bad …`.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_core import CheckpointManager, KeepLast, NotFoundError, StoreError

PROCESSES = 8
EXPERIMENTS = ("shared", "also-shared", "kept-short")
CHUNK = 4096
KEEP = 2


def state_of(who: int, step: int) -> dict[str, Any]:
    """Chunks that many have, some that change slowly, and one that nobody else has."""
    chunks = [*range(6), *(1000 + who * 100 + (step + n) // 4 for n in range(4)), 1_000_000 * who + step]
    return {"w": np.repeat(np.array(chunks, np.int64), CHUNK // 8), "who": who, "step": step}


def experiment_of(number: int) -> str:
    return EXPERIMENTS[number % len(EXPERIMENTS)]


def opened(root: str, experiment: str) -> CheckpointManager:
    retention = [KeepLast(KEEP)] if experiment == "kept-short" else []
    return CheckpointManager(root, experiment=experiment, chunk_bytes=CHUNK, retention=retention)


class Process:
    def __init__(self, root: str, who: int, experiment: str, out: int) -> None:
        self.who, self.out = who, out
        self.manager = opened(root, experiment)
        self.manager.begin_attempt(None)
        self.say(f"in {experiment}")
        self.chance = random.Random(who)
        self.step = 0
        self.mine: list[str] = []

    def say(self, text: str) -> None:
        os.write(self.out, f"{text}\n".encode())

    def save(self) -> None:
        self.step += 1
        checkpoint = self.manager.save(
            state_of(self.who, self.step), step=self.step, wait=self.chance.random() < 0.5
        ).result()
        self.say(f"save {checkpoint.id} {self.step}")
        self.mine.append(checkpoint.id)
        for _, error in (*self.manager.failures, *self.manager._saver.unfinished):
            self.say(f"bad {error!r}")

    def load(self) -> None:
        found = self.manager.checkpoints()
        reference = self.chance.choice(["latest", *(c.id for c in found)])
        try:
            state = self.manager.load(reference, fallback=False)
        except NotFoundError:
            self.say("read nothing")
            return
        expected = state_of(state["who"], state["step"])
        self.say("read" if (state["w"] == expected["w"]).all() else f"bad {reference} is not what was saved")

    def forget(self) -> None:
        if len(self.mine) > 3 and self.manager.experiment != "kept-short":
            victim = self.mine.pop(self.chance.randrange(len(self.mine)))
            self.say(f"forget {victim}")
            self.manager.forget(victim, grace=self.chance.choice([0, 60]))
            if self.chance.random() < 0.3:
                self.undelete(victim)

    def undelete(self, victim: str) -> None:
        try:
            self.manager.undelete(victim)
        except NotFoundError:  # it had no grace, and somebody has pruned
            return
        except StoreError as error:
            self.say("locked" if error.kind == "locked" else f"bad {error!r}")
            return
        self.say(f"undelete {victim}")
        self.mine.append(victim)

    def prune(self) -> None:
        try:
            self.say(f"prune {self.manager.prune().packs}")
        except StoreError as error:
            self.say("locked" if error.kind == "locked" else f"bad {error!r}")

    def run(self, until: float) -> None:
        """Everything once, however slow the machine, then what chance says until it is time."""
        work = [self.save] * 6 + [self.load] * 4 + [self.forget] * 4 + [self.prune]
        try:
            for each in (*[self.save] * 4, self.load, self.forget, self.prune):
                each()
            while time.monotonic() < until:
                self.chance.choice(work)()
            self.manager.close()
            self.say("done")
        except BaseException:
            self.say(f"bad {' '.join(traceback.format_exc().split())}")


def born(root: str, who: int, number: int, until: float) -> int:
    child = os.fork()
    if child == 0:
        out = os.open(Path(root).parent / f"said-{who}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            Process(root, who, experiment_of(number), out).run(until)
        finally:
            os._exit(0)
    return child


def main(root: str, seconds: float, seed: int) -> None:
    with CheckpointManager("memory://", experiment="warm up", catalog="sqlite://") as manager:
        manager.save(state_of(0, 0), step=0, wait=True)
        manager.load()
    opened(root, EXPERIMENTS[0]).close()
    chance = random.Random(seed)
    until = time.monotonic() + seconds
    who = 0
    alive: dict[int, int] = {}
    for number in range(PROCESSES):
        alive[born(root, who := who + 1, number, until)] = number
    while time.monotonic() < until - 1:
        time.sleep(chance.uniform(1.0, 3.0))
        victim = chance.choice(sorted(alive))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        number = alive.pop(victim)
        alive[born(root, who := who + 1, number, until)] = number
    for child in alive:
        os.waitpid(child, 0)
    print(who)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
