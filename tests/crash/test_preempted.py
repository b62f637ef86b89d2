"""SIGTERM with ten seconds to live and a state of a gigabyte: what was acknowledged is there, and mostly the last step."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ckpt_core import CheckpointManager
from crash.preempted_child import fresh

GRACE = 10.0  # seconds, as the most impatient schedulers give


@pytest.mark.slow
@pytest.mark.parametrize(("megabytes", "lives"), [(1024, 1), (16, 3)])
def test_told_to_end_and_killed_ten_seconds_later(tmp_path: Path, megabytes: int, lives: int) -> None:
    seed = int(os.environ.get("CKPT_TEST_SEED", "20260101"))
    chance = random.Random(f"{seed} {megabytes}")
    root = tmp_path / "store"
    acknowledged: dict[str, int] = {}
    for life in range(lives):
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("preempted_child.py")), str(root), str(megabytes)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )  # fmt: skip
        said = said_until(child, b"begin")
        said += said_until(child, b"step")
        select.select([], [], [], chance.uniform(0, 1))  # any moment: of a step, of a capture, of a write
        child.send_signal(signal.SIGTERM)
        try:
            rest, errors = child.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            rest, errors = child.communicate()
        print(f"seed={seed} life={life} exit={child.returncode}")
        assert child.returncode in (-signal.SIGTERM, -signal.SIGKILL), errors.decode()
        lines = [line.split() for line in (said + rest).decode().splitlines()]
        last = max(int(line[1]) for line in lines if line[0] == "step")
        acknowledged |= {line[2]: int(line[1]) for line in lines if line[0] == "ack" and len(line) == 3}
        with CheckpointManager(root, experiment="preempted") as manager:
            there = {c.id: c.step for c in manager.checkpoints()}
            assert acknowledged.items() <= there.items()
            assert manager.verify(read_data=megabytes < 100).ok
            if child.returncode == -signal.SIGTERM:  # it ended by itself, and so it had saved
                assert manager.latest().step == last
                state = manager.load()
                assert state["step"] == last
                assert len(state["w"]) == megabytes << 20
                assert np.array_equal(state["w"][:4096], expected(last))
            else:
                assert manager.latest() is None or manager.load()["step"] == manager.latest().step


def expected(last: int) -> np.ndarray:
    """The first page of the weights after so many steps, in however many lives."""
    page = fresh(1 / 256)
    for step in range(1, last + 1):
        page[step % 4096 :: 1 << 12] += 1
    return page


def said_until(child: subprocess.Popen[bytes], word: bytes) -> bytes:
    assert child.stdout is not None
    said = b""
    while word not in said or not said.endswith(b"\n"):
        assert select.select([child.stdout], [], [], 120)[0], f"{word!r} did not come: {said!r}"
        part = os.read(child.stdout.fileno(), 1 << 16)
        assert part, f"it ended before it said {word!r}: {said!r} {child.stderr and child.stderr.read()!r}"
        said += part
    return said
