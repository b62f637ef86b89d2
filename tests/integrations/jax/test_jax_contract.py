"""Exact resume of a plain JAX loop: killed anywhere, run again, equal bit for bit to a run that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ckpt_core import CheckpointManager

PROGRAM = Path(__file__).with_name("loop_digits.py")


def run(folder: Path, shared: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(shared / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.run(
        [sys.executable, PROGRAM, folder, shared / "digits.npz", *arguments],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def finish(folder: Path, shared: Path, *arguments: str) -> str:
    done = run(folder, shared, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stderr


def steps(folder: Path) -> dict[int, list[str]]:
    """The last record of each step: those after the checkpoint that was resumed from were made again."""
    rows = [line.split() for line in (folder / "steps.txt").read_text().splitlines()]
    return {int(row[0]): row[1:] for row in rows}


def series(folder: Path) -> dict[tuple[str, int], float]:
    """Every metric that was logged, by name and step; of those logged twice, what the last attempt said."""
    with CheckpointManager(folder / "store", experiment="digits") as manager:
        points = [point for _, _, found in manager.workspace.segments.all("digits") for point in found]
    ordered = sorted(points, key=lambda point: point.attempt)
    return {(point.name, point.step): point.value for point in ordered}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the runs share: compiled programs, the same machine code in all of them, and the data."""
    folder = tmp_path_factory.mktemp("shared")
    digits = load_digits()
    np.savez(folder / "digits.npz", data=digits.data, target=digits.target)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """A run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, shared)
    return folder


CASES = {
    "first step": "step 1",
    "mid-epoch": "step 14",
    "evaluation due": "evaluate 14",
    "last step of an epoch": "step 18",
    "boundary of epochs": "boundary 1",
    "last step of all": "step 27",
    "inside a save": "inside-save",
}


@pytest.mark.parametrize("die", CASES.values(), ids=CASES.keys())
def test_killed_and_run_again(die: str, whole: Path, shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed = run(folder, shared, "--die", die)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (folder / "final.json").exists()

    said = finish(folder, shared)

    if die != "step 1":
        assert "resumed from checkpoint" in said
    mine, theirs = (json.loads((each / "final.json").read_text()) for each in (folder, whole))
    assert mine == theirs
    assert steps(folder) == steps(whole)
    assert series(folder) == series(whole)


def test_run_again_when_complete_does_nothing_and_when_more_is_asked_goes_on(
    whole: Path, shared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    finish(folder, shared, "--epochs", "2")
    before = (folder / "steps.txt").read_text()
    assert "nothing to do" in finish(folder, shared, "--epochs", "2")
    assert (folder / "steps.txt").read_text() == before

    finish(folder, shared)

    assert (folder / "steps.txt").read_text() == (whole / "steps.txt").read_text()
    assert json.loads((folder / "final.json").read_text()) == json.loads((whole / "final.json").read_text())
