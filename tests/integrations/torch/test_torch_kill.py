"""A plain PyTorch loop, killed and started again by the same command, ends as if it had never been killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from contract.training import Ended, Training, assert_same_training, resumed_steps

SCRIPT = Path(__file__).with_name("train_loop.py")


@pytest.fixture
def training(tmp_path: Path) -> Any:
    """Makes a training with options, and the reference of it that is never killed."""

    def make(**options: Any) -> tuple[Training, Ended]:
        reference = Training(SCRIPT, tmp_path / "reference", options).complete()
        return Training(SCRIPT, tmp_path / "killed", options), reference

    return make


CASES: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "augmented": {"augment": "globals", "scheduler": "multistep"},
    "generator of the dataset, masks": {"augment": "own", "mask": True, "norm": False},
    "accumulated": {"accumulate": 3, "every": 1},
    "accumulated, a step each batch": {"accumulate": 3, "every": 1, "step_each_batch": True},
    "plateau": {"scheduler": "plateau"},
    "workers": {"workers": 2, "augment": "globals", "mask": True},
    "persistent workers": {"workers": 2, "persistent": True, "augment": "own", "mask": True},
    "replayed": {"resume_data": "replay", "workers": 2, "augment": "globals"},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_killed_and_started_again_it_is_the_same_training(training: Any, options: dict[str, Any]) -> None:
    job, reference = training(**options)
    parts = [
        job.killed(saved=2),
        job.killed(batch=[0, 7]),  # the last of its epoch
        job.killed(batch=[1, 4]),
        job.killed(saved=6),
        job.killed(batch=[2, 6]),
        job.complete(),
    ]
    assert_same_training(reference, parts)
    steps = resumed_steps(parts)
    assert steps == sorted(steps)
    assert steps[-1] > steps[0] > 0
