"""Figures that need a whole process: how they are started, timed and asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "ask", "seconds_of"]

ROOT = Path(__file__).parents[1]
_TIMEOUT = 1800.0


def _environment() -> dict[str, str]:
    # The child finds what this process found, wherever it was started.
    paths = [str(ROOT), *(path for path in sys.path if path)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def ask(module: str, *arguments: str) -> dict[str, Any]:
    """What a module prints as one line of JSON. Raises RuntimeError with the end of what it complained of."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, *arguments],
        cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=_TIMEOUT, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(
            done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it failed silently"
        )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def seconds_of(arguments: Sequence[str], folder: Path) -> float:
    """How long `python ARGUMENTS` takes as a whole process. Raises RuntimeError where it fails."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=_environment(), capture_output=True, text=True, timeout=_TIMEOUT, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    if done.returncode != 0:
        raise RuntimeError(
            done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it failed silently"
        )
    return seconds
