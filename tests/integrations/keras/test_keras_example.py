"""The example of Keras, run as a person would, on the backend that is set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contract.examples import last_state, run, run_killed

PRELOAD = ("keras", "ckpt_keras.callback", "tensorflow")  # the last if it is there: Keras seeds it, too


def test_killed_and_started_again_it_ends_the_same(tmp_path: Path) -> None:
    run("keras_digits.py", tmp_path / "whole", "--epochs", "2", preload=PRELOAD)
    run_killed("keras_digits.py", tmp_path / "killed", "--epochs", "2", after="saved step 60")
    resumed = run("keras_digits.py", tmp_path / "killed", "--epochs", "2", preload=PRELOAD)
    assert "resumed from checkpoint" in resumed
    whole, killed = (last_state(tmp_path / each, "digits") for each in ("whole", "killed"))
    for part in ("weights", "seeds", "optimizer"):
        bits = [[value.tobytes() for value in _values(state["model"][part])] for state in (whole, killed)]
        assert bits[0] == bits[1], part
    assert whole["rng"]["numpy"] == killed["rng"]["numpy"]
    again = run("keras_digits.py", tmp_path / "killed", "--epochs", "2", preload=PRELOAD)
    assert "already complete at step 92: nothing to do" in again


def _values(part: Any) -> Any:
    return part.values() if isinstance(part, dict) else part
