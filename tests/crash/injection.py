"""The faults of the crash matrix: `faults.c`, built, loaded before the C library, and armed."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["FAULTS", "Injection", "build"]

FAULTS = {"SIGKILL": 1, "power cut": 2, "EIO": 3, "ENOSPC": 4}
"""Name of each fault -> what `faults.c` calls it. A full disk stays full; the others strike once."""


def build(folder: Path) -> Path:
    """The library, compiled into a folder."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("faults are injected by a library in C: that needs Linux and a C compiler (cc)")
    library = folder / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run(
        [compiler, "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o", library, source],
        check=True,
    )
    return library


class Injection:
    """The library as it is loaded in this process."""

    def __init__(self) -> None:
        loaded = ctypes.CDLL(None)
        loaded.faults_arm.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int)
        loaded.faults_disarm.restype = ctypes.c_long
        self._loaded = loaded

    def arm(self, folder: str, fault: str | None, at: int, report: int) -> None:
        """Has the `at`-th call that changes something below `folder` fail; `report` is where it is told."""
        kind = 0 if fault is None else FAULTS[fault]
        assert self._loaded.faults_arm(folder.encode(), kind, at, report) == 0

    def disarm(self) -> int:
        """No more faults; how many calls there were."""
        return int(self._loaded.faults_disarm())
