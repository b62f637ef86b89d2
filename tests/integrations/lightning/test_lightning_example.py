"""The example of Lightning, run as a person would."""

from __future__ import annotations

from pathlib import Path

from contract.examples import last_state, run, run_killed
from contract.training import digest

PRELOAD = ("lightning.pytorch", "pytorch_lightning", "torchmetrics", "ckpt_lightning")


def test_killed_and_started_again_it_ends_the_same(tmp_path: Path) -> None:
    run("lightning_digits.py", tmp_path / "whole", "--epochs", "2", preload=PRELOAD)
    run_killed("lightning_digits.py", tmp_path / "killed", "--epochs", "2", after="saved step 60")
    resumed = run("lightning_digits.py", tmp_path / "killed", "--epochs", "2", preload=PRELOAD)
    assert "resumed from checkpoint" in resumed
    states = [last_state(tmp_path / each, "digits") for each in ("whole", "killed")]
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
        assert digest(states[0][part]) == digest(states[1][part]), part
    again = run("lightning_digits.py", tmp_path / "killed", "--epochs", "2", preload=PRELOAD)
    assert "already complete at step 94: nothing to do" in again
