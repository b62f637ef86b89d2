"""How cost grows: save, load, verify, ls and prune against bytes, tensors and checkpoints; and a save whose
retention deletes one of many.

Anything that bends upward is a defect: on a plot with two logarithmic axes a straight line of slope 1 is a
cost in proportion, and the steepest piece of each line is what its row in the table tells.
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import engine, filling, states
from benchmarks.results import Curve, Goal, Results, Settings
from benchmarks.states import State
from benchmarks.timing import Samples, evict, timed
from ckpt_core import KeepLast, Workspace
from ckpt_core.model import Checkpoint
from ckpt_core.pipeline.answers import Answers
from ckpt_core.policies import RetentionContext

__all__ = ["run"]

STRAIGHT = Goal("growth", "<=", 1.15)
OPERATIONS = ("save", "load", "verify", "ls", "prune")
RETAINED = "save with a deletion"
LONGEST = 90.0  # seconds: when one point took that long, the next, ten times larger, is left out
ENOUGH = 20.0  # seconds: a point whose one round takes so long needs no other
SHORTEST = 0.02  # a piece of a line whose end takes less says more of the machine than of us

Point = dict[str, list[float]]


def run(settings: Settings, results: Results) -> None:
    """Three axes, five operations each."""
    quick = settings.quick
    sizes = (6 << 20, 24 << 20) if quick else (24 << 20, 96 << 20, 384 << 20, 1536 << 20, 6144 << 20)
    tensors = (10, 1000) if quick else (10, 100, 1000, 10_000, 50_000)
    checkpoints = (10, 50) if quick else (10, 100, 1000, 10_000, 100_000)
    axes: tuple[tuple[str, str, Sequence[int], Callable[[int], Point]], ...] = (
        ("size", "bytes of the state", sizes, lambda size: _of_state(states.of_bytes(size), settings)),
        (
            "tensors",
            "tensors of a state of 64 MB",
            tensors,
            lambda n: _of_state(_tensors(n, quick), settings),
        ),
        ("checkpoints", "checkpoints in the store", checkpoints, lambda n: _of_store(n, settings)),
    )
    for axis, label, values, measure in axes:
        lines: dict[str, list[tuple[float, float]]] = {}
        for value in values:
            point = measure(value)
            for operation, seconds in point.items():
                lines.setdefault(operation, []).append((value, statistics.median(seconds)))
            found = {operation: Samples(operation, "s", seconds) for operation, seconds in point.items()}
            results.race("growth", f"{label}: {value:,}", found)
            if max(max(seconds) for seconds in point.values()) > LONGEST:
                break
        for operation, points in lines.items():
            results.curves.append(Curve(f"growth-{axis}", operation, label, "seconds", tuple(points)))
            _judge(results, operation, axis, points)
    shutil.rmtree(settings.work / "growth", ignore_errors=True)


def _tensors(count: int, quick: bool) -> State:
    return states.evenly(count, (8 if quick else 64) << 20)


def _judge(results: Results, operation: str, axis: str, points: Sequence[tuple[float, float]]) -> None:
    """One line of the table and one sentence: the steepest piece of the line among those that take long."""
    pieces = [
        (math.log(t2 / t1) / math.log(x2 / x1), x1, x2)
        for (x1, t1), (x2, t2) in pairwise(points)
        if t2 >= SHORTEST
    ]
    (x0, first), (x9, last) = points[0], points[-1]
    said = f"from {x0:,.0f} to {x9:,.0f}, {first * 1e3:,.1f} ms to {last * 1e3:,.1f} ms"
    if not pieces:
        steepest, note = 0.0, f"{said}: too little to tell"
    else:
        steepest, x1, x2 = max(pieces)
        note = f"{said}; steepest from {x1:,.0f} to {x2:,.0f}"
    results.add(
        "growth", f"{operation} against {axis}, steepest slope", value=steepest, goal=STRAIGHT, note=note
    )


def _of_state(state: State, settings: Settings) -> Point:
    """One store, in which this state is saved anew each round; one old checkpoint is pruned each round."""
    folder = settings.work / "growth"
    point: Point = {operation: [] for operation in OPERATIONS}
    with engine.manager_at(folder) as manager:
        into = state.like()
        for number in range(settings.rounds):
            step = 1 + number
            _take(point, "save", partial(manager.save, state.tree, step=step, wait=True))
            evict(folder)
            _take(point, "load", partial(manager.load, like=into.tree))
            evict(folder)
            _take(point, "verify", partial(manager.verify, "latest"))
            _take(point, "ls", partial(_ls, folder))
            manager.forget("latest", grace=0)
            _take(point, "prune", manager.prune)
            state.step()
            if _enough(point):
                break
    shutil.rmtree(folder)
    return point


def _of_store(count: int, settings: Settings) -> Point:
    """One store that is filled up to `count` checkpoints, each with a pack of 4 KiB of its own: real commits, one
    after the other, but nothing is made durable, and the catalog gets their rows all at once."""
    folder = settings.work / "growth-checkpoints"
    there = len(list(folder.glob("checkpoints/*/*.json"))) if folder.exists() else 0
    filling.fill_store(folder, there, count)
    point: Point = {operation: [] for operation in (*OPERATIONS, RETAINED)}
    state = states.evenly(10, 40_000)
    for _ in range(settings.rounds):
        with engine.manager_at(folder) as manager:
            newest = manager.latest()
            assert newest is not None
            manager.begin_attempt(newest)
            step = newest.step + 1
            _take(
                point,
                "save",
                partial(manager.save, state.tree, step=step, wait=True),
            )
            _take(point, "load", manager.load)
            _take(point, "ls", partial(_ls, folder))
            manager.forget("latest", grace=0)
            _take(point, "prune", manager.prune)
            _take(point, "verify", manager.verify)
        state.step()
        if _enough(point):
            break
    _retain(point, folder, state, settings)
    return point


def _retain(point: Point, folder: Path, state: State, settings: Settings) -> None:
    """Saves after each of which one checkpoint is deleted, of those saved here. The first of a process is left
    out: it reads every manifest, to learn what is needed of which pack."""
    with engine.manager_at(folder, retention=[KeepLast(1), KeepFilled()]) as manager:
        newest = manager.latest()
        assert newest is not None
        manager.begin_attempt(newest)
        for number in range(3 + settings.rounds):
            work = partial(manager.save, state.tree, step=newest.step + 1 + number, wait=True)
            _, seconds = timed(work)
            if number >= 3:
                point[RETAINED].append(seconds)
            state.step()
        manager.forget("latest", grace=0)
        manager.prune()


@dataclass(frozen=True)
class KeepFilled:
    """Keeps for good what the store was filled with: that is alone in carrying a metric."""

    def keep(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> dict[str, str]:
        return {checkpoint.id: "filled" for checkpoint in checkpoints if "loss" in checkpoint.metrics}

    def lasting(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> Collection[str]:
        return self.keep(checkpoints, context)

    def describe(self, context: RetentionContext) -> str:
        return "filled"


def _enough(point: Point) -> bool:
    return sum(seconds[-1] for seconds in point.values() if seconds) > ENOUGH


def _ls(folder: Path) -> None:
    """What `ckpt ls` asks, without the start of a process: the newest hundred, and how many there are."""
    workspace = Workspace.open(folder)
    index = workspace.index
    index.synchronise()
    for name in index.ask(lambda answers: answers.experiment_names()):
        assert index.ask(partial(_newest, name), name)
    workspace.close()


def _newest(experiment: str, answers: Answers) -> tuple[list[Checkpoint], int]:
    return answers.checkpoints(experiment, newest_first=True, limit=100), answers.count(experiment)


def _take(point: Point, operation: str, work: Callable[[], Any]) -> None:
    point[operation].append(timed(work)[1])
