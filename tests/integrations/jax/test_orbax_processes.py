"""OrbaxHandler in a run of two processes: the first one seals and records, both check and restore."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_jax.sidecar import NAME

PROGRAM = Path(__file__).with_name("orbax_process.py")


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_two_processes(version: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    processes = [
        subprocess.Popen(
            [sys.executable, PROGRAM, str(rank), str(port), tmp_path, version],
            env=environment | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    answers = []
    for process in processes:
        out, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
        answers.append(json.loads(next(line for line in out.splitlines() if line.startswith("{"))))

    assert [answer["first"] for answer in answers] == [0.0, 32.0]
    assert [answer["failures"] for answer in answers] == [0, 0]
    assert answers[0]["steps"] == [1, 2]
    heard = answers[0]["heard"]
    assert [event for event in heard if event[0] in ("AFTER_SAVE", "AFTER_LOAD")] == [
        ["AFTER_SAVE", 1], ["AFTER_SAVE", 2], ["AFTER_LOAD", 2],
    ]  # fmt: skip
    assert answers[1]["heard"] == []
    assert len(list((tmp_path / "orbax").rglob(NAME))) == 2
