"""The examples run, run again, and go on; after a kill, too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from orbax_listener import flip, largest

from ckpt_core import CheckpointManager

EXAMPLES = Path(__file__).parents[3] / "examples"


def start(name: str, folder: Path, *arguments: object) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        cwd=folder, env=environment | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run(name: str, folder: Path, *arguments: object) -> tuple[int, str]:
    process = start(name, folder, *arguments)
    said, _ = process.communicate(timeout=240)
    return process.returncode, said


@pytest.mark.parametrize("name", ["jax_loop.py", "orbax_dropin.py"])
def test_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 80


def test_loop_is_killed_and_goes_on(tmp_path: Path) -> None:
    process = start("jax_loop.py", tmp_path, "--epochs", 400)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("saved step"):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL

    code, said = run("jax_loop.py", tmp_path, "--epochs", 6)
    assert code == 0, said
    assert "resumed from checkpoint" in said
    code, said = run("jax_loop.py", tmp_path, "--epochs", 6)
    assert code == 0, said
    assert "nothing to do" in said
    with CheckpointManager(tmp_path / "checkpoints", experiment="digits", metric="held_out") as manager:
        best = manager.best()
        assert best is not None
        assert best.metrics["held_out"] < 1


def test_orbax_goes_on_and_damage_is_told(tmp_path: Path) -> None:
    code, said = run("orbax_dropin.py", tmp_path, "--steps", 30)
    assert code == 0, said
    assert "step 20 is committed" in said
    code, said = run("orbax_dropin.py", tmp_path, "--steps", 45)
    assert code == 0, said
    assert "restored step 20" in said
    flip(largest(tmp_path / "runs" / "digits" / "orbax" / "40"))
    code, said = run("orbax_dropin.py", tmp_path)
    assert code == 1, said
    assert "damaged: " in said
    assert "restore another step" in said
