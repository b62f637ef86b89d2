"""The examples, run as a person would: killed, started again, and started once more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax_listener import flip, largest

from ckpt_core import CheckpointManager
from ckpt_jax import as_state
from contract.examples import EXAMPLES, last_state, run_killed


def start(name: str, store: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / name, "--store", store, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240, check=False,
    )  # fmt: skip


def run(name: str, store: Path, *arguments: str) -> str:
    done = start(name, store, *arguments)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("name", ["jax_loop.py", "orbax_dropin.py"])
def test_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 80


def test_the_loop_ends_the_same(tmp_path: Path) -> None:
    run("jax_loop.py", tmp_path / "whole", "--epochs", "2")
    run_killed("jax_loop.py", tmp_path / "killed", "--epochs", "2", after="saved step 60")
    resumed = run("jax_loop.py", tmp_path / "killed", "--epochs", "2")
    assert "resumed from checkpoint" in resumed
    assert bits(tmp_path / "whole") == bits(tmp_path / "killed")
    assert "nothing to do" in run("jax_loop.py", tmp_path / "killed", "--epochs", "2")
    with CheckpointManager(tmp_path / "killed", experiment="digits", metric="held_out") as manager:
        best = manager.best()
        assert best is not None
        assert best.metrics["held_out"] < 1.5


def bits(store: Path) -> list[bytes]:
    state = last_state(store, "digits")
    state["state"]["key"] = jax.random.key_data(state["state"]["key"])
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(as_state(state["state"]))]


def test_orbax_ends_the_same_and_damage_is_told(tmp_path: Path) -> None:
    whole = run("orbax_dropin.py", tmp_path / "whole", "--steps", "400")
    run_killed("orbax_dropin.py", tmp_path / "killed", "--steps", "400", after="step 20 is committed")
    resumed = run("orbax_dropin.py", tmp_path / "killed", "--steps", "400")
    assert "restored step" in resumed
    assert resumed.splitlines()[-1] == whole.splitlines()[-1]

    flip(largest(tmp_path / "killed" / "orbax" / "400"))
    damaged = start("orbax_dropin.py", tmp_path / "killed")
    assert damaged.returncode == 1, damaged.stdout
    assert "damaged: " in damaged.stdout
    assert "restore another step" in damaged.stdout
