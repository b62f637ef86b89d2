"""How cost grows: save, load, verify, ls and prune against bytes, tensors and checkpoints.

Anything that bends upward is a defect: on a plot with two logarithmic axes a straight line of slope 1 is a
cost in proportion, and the steepest piece of each line is what its row in the table tells.
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import engine, filling, states
from benchmarks.results import Curve, Goal, Results, Settings
from benchmarks.states import State
from benchmarks.timing import Samples, evict, timed
from ckpt_core import Workspace

__all__ = ["run"]

STRAIGHT = Goal("growth", "<=", 1.15)
OPERATIONS = ("save", "load", "verify", "ls", "prune")
LONGEST = 300.0  # seconds: when one point took that long, the next, ten times larger, is left out
ENOUGH = 60.0  # seconds: a point whose one round takes so long needs no other
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
        lines: dict[str, list[tuple[float, float]]] = {operation: [] for operation in OPERATIONS}
        for value in values:
            point = measure(value)
            for operation, seconds in point.items():
                lines[operation].append((value, statistics.median(seconds)))
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
            manager.forget("latest")
            _take(point, "prune", manager.prune)
            state.step()
            if _enough(point):
                break
    shutil.rmtree(folder)
    return point


def _of_store(count: int, settings: Settings) -> Point:
    """One store that is filled up to `count` checkpoints of a few kilobytes."""
    folder = settings.work / "growth-checkpoints"
    there = len(list(folder.glob("checkpoints/*/*.json"))) if folder.exists() else 0
    filling.fill_store(folder, there, count)
    point: Point = {operation: [] for operation in OPERATIONS}
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
            manager.forget("latest")
            _take(point, "prune", manager.prune)
            _take(point, "verify", manager.verify)
        state.step()
        if _enough(point):
            break
    return point


def _enough(point: Point) -> bool:
    return sum(seconds[-1] for seconds in point.values()) > ENOUGH


def _ls(folder: Path) -> None:
    """What `ckpt ls` asks, without the start of a process."""
    workspace = Workspace.open(folder)
    assert workspace.index.checkpoints()
    workspace.close()


def _take(point: Point, operation: str, work: Callable[[], Any]) -> None:
    point[operation].append(timed(work)[1])
