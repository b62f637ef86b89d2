"""SIGKILL at random moments of a loop that saves without pause: what was acknowledged is there and whole."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ckpt_core import Checkpoint, CheckpointManager
from crash.saving_child import KEEP, options_of, state_of

TRIALS = 200
LIVES = 10  # how often the loop is started again on one store
MODES = ("sync", "sync retention", "pending", "pending retention")
LONGEST = 0.08  # seconds from the event that is waited for to the death


class Nursery:
    """The interpreter that gives birth to the loops."""

    def __init__(self, folder: Path) -> None:
        self._pipe = str(folder / "pipe")
        os.mkfifo(self._pipe)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("saving_child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )

    def live_and_die(
        self, root: Path, seed: int, mode: str, event: str, delay: float
    ) -> list[tuple[int, str]]:
        """Runs the loop, kills it `delay` seconds after `event`; returns what it acknowledged."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        reading = os.open(self._pipe, os.O_RDONLY | os.O_NONBLOCK)
        task = {"root": str(root), "seed": seed, "mode": mode, "pipe": self._pipe}
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        said = b""
        while event.encode() not in said:
            assert select.select([reading], [], [], 60)[0], f"{event!r} did not come: {said!r}"
            said += os.read(reading, 1 << 16)
        select.select([], [], [], delay)  # not until the pipe says more: death may come at any instant
        os.kill(child, signal.SIGKILL)
        assert int(self._process.stdout.readline()) == -signal.SIGKILL, said.decode()
        os.set_blocking(reading, True)  # what it had begun to start may hold the pipe for a moment more
        while part := os.read(reading, 1 << 16):
            said += part
        os.close(reading)
        lines = [line.split() for line in said.decode().splitlines()]
        assert ["ended", "by", "itself"] not in lines
        return [(int(line[1]), line[2]) for line in lines if line[0] == "ack"]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path)
    yield nursery
    nursery.close()


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_killed(nursery: Nursery, tmp_path: Path, mode: str) -> None:
    seed = int(os.environ.get("CKPT_TEST_SEED", "20260101"))
    chance = random.Random(f"{seed} {mode}")
    acknowledged_in_all = unacknowledged_in_all = least = 0
    for store in range(TRIALS // LIVES // len(MODES)):
        root = tmp_path / f"{store}"
        acknowledged: dict[str, int] = {}
        for life in range(LIVES):
            # One in four dies while it opens the store and makes its first save.
            event, delay = chance.choice(("begin", "ack", "ack", "ack")), chance.uniform(0, LONGEST)
            print(f"seed={seed} mode={mode} store={store} life={life} {event}+{delay:.4f}")
            least += event == "ack"
            life_seed = chance.randrange(1 << 30)
            for step, checkpoint in nursery.live_and_die(root, life_seed, mode, event, delay):
                acknowledged[checkpoint] = step
            if (root / "store.json").exists():
                visible = look(root, acknowledged, mode)
                unacknowledged_in_all += sum(c.id not in acknowledged for c in visible)
        acknowledged_in_all += len(acknowledged)
    print(f"{acknowledged_in_all} acknowledged, {unacknowledged_in_all} times one more was visible")
    assert acknowledged_in_all >= least


def look(root: Path, acknowledged: dict[str, int], mode: str) -> list[Checkpoint]:
    """What a new process finds after the death of the last one."""
    options = options_of(mode)
    options.pop("retention", None)
    with CheckpointManager(root, **options) as manager:
        visible = manager.checkpoints()
        report = manager.verify()
        assert report.ok, report.problems
        there = {c.id for c in visible}
        known = manager.workspace.index.catalog().checkpoints("killed")
        assert known == visible, "the catalog is not in line"
        expected = set(acknowledged)
        if "retention" in mode:
            # Those that it keeps; what was committed and not acknowledged counts among the last.
            expected = set(sorted(there | expected)[-KEEP:]) & set(acknowledged)
            best = manager.best()
            assert best is None or best.metrics["loss"] == min(c.metrics["loss"] for c in visible)
        assert expected <= there, f"lost: {sorted(expected - there)}"
        for checkpoint in visible[-KEEP:]:
            loaded = manager.load(checkpoint.id)
            assert loaded["step"] == checkpoint.step
            assert acknowledged.get(checkpoint.id, checkpoint.step) == checkpoint.step
            np.testing.assert_array_equal(loaded["mine"], state_of(checkpoint.step)["mine"])
        for tag, identity in manager.workspace.references.of_experiment("killed")[0].items():
            assert identity in there or identity not in acknowledged or "retention" in mode, tag
        manager.prune()
        assert manager.verify().ok
        assert manager.checkpoints() == visible
    return visible
