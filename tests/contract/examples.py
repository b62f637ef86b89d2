"""An example, killed by SIGKILL as it runs and started again, against one that was not."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

from ckpt_core import CheckpointManager
from contract.training import SECONDS, forget_logging, server

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_killed(script: str, store: Path, *arguments: str, after: str) -> str:
    """Run an example by its command, and kill it when it prints `after`. What it printed."""
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / script), "--store", str(store), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if after in line:
                process.kill()
    output = "".join(lines)
    assert process.returncode == -9, output
    return output


def run(script: str, store: Path, *arguments: str, preload: tuple[str, ...] = ()) -> str:
    """Run an example to its end, in a process forked off one that has imported its frameworks."""
    output = store.with_suffix(".output")
    argv = [str(EXAMPLES / script), "--store", str(store), *arguments]
    process = server(preload).Process(target=_child, args=(argv, str(output)))
    process.start()
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0, output.read_text()
    return output.read_text()


def _child(argv: list[str], output: str) -> None:
    forget_logging()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


def last_state(store: Path, experiment: str) -> Any:
    """What the newest checkpoint holds."""
    with CheckpointManager(store, experiment=experiment) as manager:
        return manager.load("latest")
