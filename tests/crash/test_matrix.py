"""The crash matrix: each call by which an operation changes files, under SIGKILL, a power cut, EIO and a full disk.

The suite strikes one call of each operation with each fault, drawn by a seed. `make crash` goes through all of them,
and puts the counts into docs/reliability.md.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from crash.injection import FAULTS
from crash.matrix import Matrix, Point
from crash.operations import OPERATIONS

DRAWN = 5
"""So often it is tried to strike: threads do not always make the last calls."""
ALL = os.environ.get("CKPT_CRASH", "")
"""Where the counts of a whole run go to."""
MEMORY = Path("/dev/shm")
"""Where it can be, all but the power cuts work in memory: what is tested there is not the disk."""


@pytest.fixture(scope="module")
def matrix() -> Iterator[Matrix]:
    with TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        matrix = Matrix(Path(folder))
        yield matrix
        matrix.close()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What the engine says of each fault would fill the memory."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_call_of_each(matrix: Matrix, name: str, fault: str) -> None:
    chance = random.Random(f"{os.environ.get('CKPT_TEST_SEED', '20260101')} {name} {fault}")
    for at in chance.sample(range(1, matrix.count(name) + 1), DRAWN):
        point = matrix.run(name, fault, at)
        assert point.verdict.ok, told(name, fault, at, point)
        if point.struck:
            return
    raise AssertionError("no fault arrived")


def test_a_promise_that_is_not_kept_is_found(matrix: Matrix) -> None:
    assert "the forgetting of step 1" in first_wrong(matrix, "promise first", "SIGKILL", 12)


def test_what_was_not_flushed_is_lost_with_the_power(matrix: Matrix) -> None:
    assert "step 4" in first_wrong(matrix, "save without flush", "power cut", 86)[0]


def test_what_is_written_in_place_is_torn(matrix: Matrix) -> None:
    assert "step 1" in first_wrong(matrix, "write in place", "SIGKILL", 12)[0]


@pytest.mark.slow
@pytest.mark.skipif(not ALL, reason="an hour: make crash")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_call_of_each(matrix: Matrix, name: str, fault: str) -> None:
    count = matrix.count(name)
    found: dict[str, Any] = {
        "operation": name,
        "fault": fault,
        "points": 0,
        "arrived": 0,
        "lost": 0,
        "torn": 0,
        "stuck": 0,
    }
    wrong = []
    at = 0
    while True:
        at += 1
        assert at < 2 * count, "the operation has no end"
        point = matrix.run(name, fault, at)
        if not point.struck and at > count:
            break
        found["points"] += 1
        found["arrived"] += point.struck is not None
        for what in ("lost", "torn", "stuck"):
            found[what] += bool(getattr(point.verdict, what))
        if not point.verdict.ok:
            wrong.append(told(name, fault, at, point))
            print(wrong[-1], flush=True)
    with open(ALL, "a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    print(found, flush=True)
    assert not wrong, "\n\n".join(wrong)
    assert found["arrived"] >= 0.95 * count, "faults did not arrive"


def first_wrong(matrix: Matrix, name: str, fault: str, begin: int) -> list[str]:
    """What is lost or torn at the first call, from `begin` on, at which anything is."""
    for at in range(begin, matrix.count(name) + 1):
        verdict = matrix.run(name, fault, at).verdict
        if verdict.lost or verdict.torn:
            return verdict.lost + verdict.torn
    raise AssertionError("nothing was found")


def told(name: str, fault: str, at: int, point: Point) -> str:
    verdict = point.verdict
    lines = [f"{name}, {fault} at call {at}: {point.struck}", point.said]
    return "\n".join([*lines, *verdict.lost, *verdict.torn, *verdict.stuck])
