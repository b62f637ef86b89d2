"""The example of the plain loop, run as a person would."""

from __future__ import annotations

from pathlib import Path

from contract.examples import last_state, run, run_killed
from contract.training import digest


def test_killed_and_started_again_it_ends_the_same(tmp_path: Path) -> None:
    whole = run("torch_loop.py", tmp_path / "whole", "--epochs", "2")
    run_killed("torch_loop.py", tmp_path / "killed", "--epochs", "2", after="saved step 60")
    resumed = run("torch_loop.py", tmp_path / "killed", "--epochs", "2")
    assert "resumed from checkpoint" in resumed
    assert [line for line in resumed.splitlines() if line.startswith("epoch 1")] == [
        line for line in whole.splitlines() if line.startswith("epoch 1")
    ]
    states = [last_state(tmp_path / each, "digits-loop") for each in ("whole", "killed")]
    for part in ("model", "optimizer", "scheduler", "loop"):
        assert digest(states[0][part]) == digest(states[1][part]), part
    assert states[0]["rng"]["torch"] == states[1]["rng"]["torch"], "the others it does not seed"
