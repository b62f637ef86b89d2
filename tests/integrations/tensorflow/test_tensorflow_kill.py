"""A loop of TensorFlow's own, killed and started again, ends bit for bit as if it had never been killed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from contract.training import Ended, Training, assert_same_training, resumed_steps

SCRIPT = Path(__file__).with_name("train_tensorflow.py")


def training(folder: Path) -> Training:
    return Training(SCRIPT, folder, preload=("tensorflow", "ckpt_tensorflow.codec"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return training(tmp_path_factory.mktemp("reference") / "run").complete()


def test_killed_and_started_again_it_is_the_same_training(reference: Ended, tmp_path: Path) -> None:
    job = training(tmp_path / "killed")
    deaths: list[dict[str, Any]] = [{"batch": [0, 7]}, {"batch": [1, 4]}, {"saved": 18}, {"fsync": 14}]
    parts = [*(job.killed(**die) for die in deaths), job.complete()]
    assert_same_training(reference, parts)
    steps = resumed_steps(parts)
    assert steps == sorted(steps)
    assert 0 < steps[0] < steps[2]


def test_what_is_not_restored_shows(reference: Ended, tmp_path: Path) -> None:
    job = training(tmp_path / "killed")
    first = job.killed(saved=12)
    for what in ("at", "rng", "optimizer", "mean"):
        shutil.copytree(job.folder, tmp_path / what)
        last = training(tmp_path / what).complete(spoil=what)
        with pytest.raises(AssertionError):
            assert_same_training(reference, [first, last])
