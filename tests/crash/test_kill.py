"""SIGKILL at random moments: what was acknowledged is there and whole, and nothing else is visible."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_core import CheckpointManager

SCRIPT = Path(__file__).with_name("kill_saver.py")
TRIALS = 200


@pytest.mark.slow
@pytest.mark.parametrize("seed", [20261123])
def test_200_kills_of_a_process_that_saves_without_pause(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}, {TRIALS} kills")
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path), str(TRIALS), str(seed)],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "acknowledged").read_text().splitlines()
    assert len(lines) > TRIALS / 2, "the kills left no time to save: this would prove nothing"
    with CheckpointManager(tmp_path / "store", experiment="digits", metric="loss") as manager:
        standing = {checkpoint.id: checkpoint for checkpoint in manager.checkpoints()}
        for line in lines:
            checkpoint, step, a, b, tags = line.split(" ")
            assert standing[checkpoint].step == int(step)
            state = manager.load(checkpoint)
            assert (state["n"], float(state["a"].sum()).hex(), float(state["b"].sum()).hex()) == (int(step), a, b)
            for tag in filter(None, tags.split(",")):
                assert manager.resolve(tag).step == int(step)
        # One save a kill at most was durable and not yet acknowledged. It is whole, too.
        extra = standing.keys() - {line.split(" ")[0] for line in lines}
        assert len(extra) <= TRIALS
        for checkpoint in extra:
            assert manager.load(checkpoint)["n"] == standing[checkpoint].step
        report = manager.verify()
        assert report.ok, report.problems
        assert report.checkpoints == len(standing)
        manager.prune()
        assert manager.verify().ok
    assert not list((tmp_path / "store" / "checkpoints").rglob("*.tmp"))
