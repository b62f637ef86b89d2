"""moonclip: deltas against the last full save, compressed by zstd, checked by xxh3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.neighbours.contract import Neighbour, Work
from benchmarks.states import State, flat

__all__ = ["MOONCLIP", "manager_at"]


def manager_at(folder: Path) -> Any:
    """Its manager, with the options that it comes with."""
    from moonclip import CheckpointManager

    return CheckpointManager(str(folder / "moonclip"))


def _write(manager: Any, step: int, state: State) -> None:
    manager.save(step=step, extra={"state": state.tree})


@contextmanager
def _save(state: State, folder: Path) -> Iterator[Work]:
    manager = manager_at(folder)

    def run() -> None:
        _write(manager, 1, state)
        manager.flush()

    yield run


@contextmanager
def _stall(state: State, folder: Path) -> Iterator[Work]:
    manager = manager_at(folder)
    _write(manager, 1, state)
    manager.flush()
    state.step()
    yield lambda: _write(manager, 2, state)
    manager.flush()


@contextmanager
def _load(state: State, folder: Path) -> Iterator[Work]:
    manager = manager_at(folder)
    yield lambda: flat(manager.load_latest()[1]["extra/state"])


MOONCLIP = Neighbour(
    "moonclip", "moonclip", "moonclip", "`CheckpointManager` as it comes, `save` and `flush`, which makes it "
    "durable; `load_latest`",
    save=_save, stall=_stall, load=_load, memory=8.0,
)  # fmt: skip
