"""The catalog with many checkpoints and metric points in it: P11, P12 and P15. The database is SQLite."""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import engine, filling
from benchmarks.results import Curve, Goal, Results, Settings
from benchmarks.timing import Contender, Samples, race, timed
from ckpt_core import KeepBest, KeepEvery, KeepLast
from ckpt_core.catalog import Catalog
from ckpt_core.model import Attempt

__all__ = ["run"]

P11 = Goal("P11", "<=", 2.0, "ms")
P11_FLAT = Goal("P11", "<=", 1.5)
P12 = Goal("P12", ">=", 100_000.0, "points/s")
P15 = Goal("P15", "<=", 1000.0, "ms")
EXPERIMENTS = [f"experiment-{number}" for number in range(10)]
ATTEMPTS = 4
POINTS_PER_CHECKPOINT = 10


def run(settings: Settings, results: Results) -> None:
    """Questions at 10⁴, 10⁵ and 10⁶ checkpoints; then points a second; then a plan to prune."""
    _questions(settings, results)
    _points(settings, results)
    _plan(settings, results)


# -- questions -----------------------------------------------------------------------------------------


def _questions(settings: Settings, results: Results) -> None:
    sizes = (1_000, 5_000) if settings.quick else (10_000, 100_000, 1_000_000)
    folder = settings.work / "catalog"
    folder.mkdir()
    attempts = filling.attempts_of(ATTEMPTS)
    lines: dict[str, list[tuple[float, float]]] = {}
    asked: dict[tuple[str, int], Samples] = {}
    with Catalog.open(f"sqlite:///{folder / 'catalog.db'}") as catalog:
        done = 0
        for size in sizes:
            _fill(catalog, attempts, done, size)
            done = size
            for question, ask in _asking(catalog, attempts[-1].lineage).items():
                samples = _latencies(question, ask, 100 if settings.quick else 2000)
                asked[question, size] = samples
                for name, share in (("p50", 50), ("p99", 99)):
                    point = (float(size), 1e3 * float(np.percentile(samples.values, share)))
                    lines.setdefault(f"{question}, {name}", []).append(point)
            results.race(
                "catalog", f"questions, {size:,} checkpoints", {q: asked[q, s] for q, s in asked if s == size}
            )
    for line, found in lines.items():
        results.curves.append(
            Curve("catalog", line, "checkpoints in the catalog", "milliseconds", tuple(found))
        )
    for question in {question: None for question, _ in asked}:
        last = asked[question, sizes[-1]]
        p50, p99 = (float(np.percentile(last.values, share)) for share in (50, 99))
        results.add(
            "catalog", f"{question}, {sizes[-1]:,} checkpoints, p99", ours=last, value=1e3 * p99, unit="ms",
            goal=P11, note=f"p50 {1e3 * p50:.2f} ms",
        )  # fmt: skip
        first = asked[question, sizes[0]]
        results.add(
            "catalog", f"{question}, median at {sizes[-1]:,} ÷ at {sizes[0]:,}", ours=last, limit=first,
            value=last.median / first.median, goal=P11_FLAT,
        )  # fmt: skip
    shutil.rmtree(folder)


def _fill(catalog: Catalog, attempts: list[Attempt], begin: int, end: int) -> None:
    filling.fill_catalog(catalog, EXPERIMENTS, attempts, begin, end)
    share = POINTS_PER_CHECKPOINT // len(EXPERIMENTS)
    for experiment in EXPERIMENTS:
        points = filling.points(attempts[-1], begin * share, end * share)
        catalog.add_metrics(experiment, attempts[-1], points)


def _asking(catalog: Catalog, lineage: str) -> dict[str, Callable[[str], object]]:
    return {
        "best": lambda experiment: catalog.best(experiment, "loss", "min", lineage),
        "best of all lineages": lambda experiment: catalog.best(experiment, "loss", "min"),
        "latest": lambda experiment: catalog.newest(experiment),
        "last 20": lambda experiment: catalog.checkpoints(experiment, newest_first=True, limit=20),
    }


def _latencies(question: str, ask: Callable[[str], object], count: int) -> Samples:
    chosen = random.Random(1)
    for _ in range(20):
        ask(chosen.choice(EXPERIMENTS))
    samples = Samples(question)
    for _ in range(count):
        name = chosen.choice(EXPERIMENTS)
        begin = time.perf_counter()
        found = ask(name)
        samples.values.append(time.perf_counter() - begin)
        assert found, f"{question} found nothing"
    return samples


# -- metric points -------------------------------------------------------------------------------------


def _points(settings: Settings, results: Results) -> None:
    count = 20_000 if settings.quick else 500_000
    contenders = [
        Contender("the table alone, by sqlite3", lambda folder: _sqlite(folder, count)),
        Contender("Catalog.add_metrics", lambda folder: _added(folder, count)),
        Contender("manager.log, until durable", lambda folder: _logged(folder, count)),
    ]
    found = race(contenders, settings.rounds, settings.work, warm_up=settings.warm_up)
    results.race("catalog", f"{count:,} metric points", found)
    for name in ("Catalog.add_metrics", "manager.log, until durable"):
        ours = found[name]
        results.add(
            "catalog", f"metric points a second, {name}", ours=ours, limit=found["the table alone, by sqlite3"],
            value=count / ours.median, unit="points/s", goal=P12,
        )  # fmt: skip


@contextmanager
def _sqlite(folder: Path, count: int) -> Iterator[Callable[[], Any]]:
    """The same numbers into one table with the same key, in one transaction, durable."""
    connection = sqlite3.connect(folder / "plain.db")
    connection.executescript(
        "PRAGMA journal_mode=WAL; CREATE TABLE points (attempt INTEGER, metric INTEGER, step INTEGER, "
        "value REAL, at INTEGER, PRIMARY KEY (attempt, metric, step)) WITHOUT ROWID"
    )
    width = len(filling.METRICS)
    rows = sorted((1, number % width, number // width, 0.5, number) for number in range(count))

    def run() -> None:
        with connection:
            connection.executemany("INSERT INTO points VALUES (?, ?, ?, ?, ?)", rows)

    yield run
    connection.close()


@contextmanager
def _added(folder: Path, count: int) -> Iterator[Callable[[], Any]]:
    attempt = filling.attempts_of(1)[0]
    points = list(filling.points(attempt, 0, count))
    with Catalog.open(f"sqlite:///{folder / 'catalog.db'}") as catalog:
        yield lambda: catalog.add_metrics("bench", attempt, points)


@contextmanager
def _logged(folder: Path, count: int) -> Iterator[Callable[[], Any]]:
    """As a training loop does it, ten metrics a step; `close` makes the last of them durable."""
    manager = engine.manager_at(folder)
    values = dict.fromkeys(filling.METRICS, 0.5)

    def run() -> None:
        for step in range(count // len(values)):
            manager.log(values, step=step)
        manager.close()

    yield run


# -- a plan to prune -----------------------------------------------------------------------------------


def _plan(settings: Settings, results: Results) -> None:
    """A store of which half of the checkpoints are forgotten, and what retention would say of the rest."""
    count = 100 if settings.quick else 10_000
    folder = settings.work / "planned"
    filling.fill_store(folder, 0, count)
    policies = [KeepLast(10), KeepBest(10), KeepEvery(steps=100)]
    with engine.manager_at(folder, metric="loss", retention=policies) as manager:
        with engine.unsynced():
            manager.workspace.forget(manager.checkpoints()[: count // 2])
        kinds = {"plan_prune": manager.plan_prune, "plan_retention": manager.plan_retention}
        found = {name: Samples(name) for name in kinds}
        for _ in range(settings.rounds):
            for name, plan in kinds.items():
                made, seconds = timed(plan)
                assert made and not getattr(made, "empty", False), f"{name} found nothing to do"
                found[name].values.append(seconds)
    results.race("catalog", f"plans, {count:,} checkpoints, half of them forgotten", found)
    for name, samples in found.items():
        results.add(
            "catalog", f"{name}, {count:,} checkpoints, half of them forgotten",
            ours=samples, value=1e3 * samples.median, unit="ms", goal=P15,
        )  # fmt: skip
    shutil.rmtree(folder)
