"""What a neighbour is."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.states import State
from benchmarks.timing import Contender

__all__ = ["Neighbour", "Start", "Work"]

Work = Callable[[], Any]
Start = Callable[[State, Path], AbstractContextManager[Work]]


@dataclass(frozen=True)
class Neighbour:
    """Another library's way of saving and loading.

    `save`: until all is on the disk. `stall`: until training may go on; the copy of an earlier save is
    there already. `load`: what `save` wrote to the folder, as tensors by path, in memory. `one`: one tensor
    by its path. `memory`: how many times the state it needs besides.
    """

    name: str
    module: str
    distribution: str
    how: str
    save: Start | None = None
    stall: Start | None = None
    load: Start | None = None
    one: Callable[[str, Path], AbstractContextManager[Work]] | None = None
    memory: float = 3.0

    def problem(self, nbytes: int = 0) -> str | None:
        """Why it cannot be run with a state of so many bytes; None where it can."""
        try:
            if importlib.util.find_spec(self.module) is None:
                return f"not installed: pip install {self.distribution}"
        except ModuleNotFoundError:
            return f"not installed: pip install {self.distribution}"
        if nbytes * self.memory > _free():
            return f"needs {self.memory:g} times the state in free memory"
        return None

    @property
    def version(self) -> str | None:
        """The version that is installed."""
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return None

    def contender(
        self,
        start: Start,
        state: State,
        *,
        check: Callable[[Any], None] | None = None,
        keep: Path | None = None,
    ) -> Contender:
        """It in a race, with this state."""
        return Contender(
            self.name, lambda folder: start(state, folder), check=check, optional=True, keep=keep
        )


def _free() -> int:
    """Bytes of memory that may be used without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
