"""Interleaved rounds: every contender once, then every contender again. Nothing here knows what is measured."""

from __future__ import annotations

import gc
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Contender", "Samples", "best_of", "evict", "make_durable", "race", "timed"]

Work = Callable[[], Any]
"""What is timed, and nothing else is."""


@dataclass(frozen=True)
class Contender:
    """One way to do what is measured.

    `start` gets a folder, makes everything ready, and gives the work to be timed; when it is left, it cleans
    up. `check` is given what the first round's work returned, and raises where that is wrong. `keep` is a
    folder that exists and stays; without it, each round gets a fresh one.
    """

    name: str
    start: Callable[[Path], AbstractContextManager[Work]]
    check: Callable[[Any], None] | None = None
    optional: bool = False
    keep: Path | None = None


@dataclass
class Samples:
    """What one contender took in each round, in `unit`. `problem` says why it has none."""

    name: str
    unit: str = "s"
    values: list[float] = field(default_factory=list)
    problem: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def __bool__(self) -> bool:
        return bool(self.values)


def race(
    contenders: Sequence[Contender], rounds: int, work: Path, *, warm_up: bool = True
) -> dict[str, Samples]:
    """Seconds of each contender, A B C A B C ..., by its name. The first round is not counted with `warm_up`.

    Before each: a fresh folder, `sync`, and what the page cache has of a kept folder is dropped. One that is
    `optional` may fail: then its samples say why. What another one raises ends the race.
    """
    results = {contender.name: Samples(contender.name) for contender in contenders}
    for number in range(rounds + warm_up):
        gc.collect()
        gc.freeze()  # what the frameworks have imported is not looked through before each contender
        for contender in contenders:
            samples = results[contender.name]
            if samples.problem is not None:
                continue
            try:
                seconds = _once(contender, work, first=number == 0)
            except Exception as error:
                if not contender.optional:
                    raise
                said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                samples.problem, samples.values = f"failed: {said}", []
                continue
            if number >= warm_up:
                samples.values.append(seconds)
        gc.unfreeze()
    return results


def _once(contender: Contender, work: Path, *, first: bool) -> float:
    folder = contender.keep or work / "round"
    if contender.keep is None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        with contender.start(folder) as run:
            gc.collect()
            os.sync()
            if contender.keep is not None:
                evict(contender.keep)
            result, seconds = timed(run)
            if first and contender.check is not None:
                contender.check(result)
            del result, run
    finally:
        if contender.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    return seconds


def timed(run: Work) -> tuple[Any, float]:
    """What it returns, and the seconds that it took."""
    begin = time.perf_counter()
    result = run()
    return result, time.perf_counter() - begin


def best_of(samples: Sequence[Samples]) -> Samples | None:
    """The one with the lowest median; None where none has any."""
    return min((each for each in samples if each), key=lambda each: each.median, default=None)


def make_durable(path: Path) -> None:
    """What makes a neighbour's files durable: an fsync of each file, and of the folders that name them."""
    found = [path, *path.rglob("*")] if path.is_dir() else [path]
    for each in [*found, path.parent]:
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def evict(folder: Path) -> None:
    """Has the page cache let go of the files below a folder, so that a read of them is a cold one."""
    if not hasattr(os, "posix_fadvise"):
        print("this system cannot be asked to drop cached files: loads are warm", file=sys.stderr)
        return
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
