"""torch-checkpointing, the likely successor of DCP. It has no fsync of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.neighbours.contract import Neighbour, Work
from benchmarks.states import State, flat
from benchmarks.timing import make_durable

__all__ = ["TORCH_CHECKPOINTING", "asynchronous"]


def _storage() -> Any:
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

    # Its O_DIRECT writes are not aligned: ext4 and XFS refuse them.
    return LocalFileSystemStorageConfig(use_direct_io=False)


def _synchronous() -> Any:
    from torch_checkpointing import CheckpointManager
    from torch_checkpointing.config import SyncCheckpointSaverConfig

    return CheckpointManager.Config(save=SyncCheckpointSaverConfig(), storage_config=_storage()).build()


def asynchronous() -> Any:
    """A manager that saves in a process of its own, on a machine without CUDA."""
    from torch_checkpointing import CheckpointManager
    from torch_checkpointing.config import AsyncCheckpointSaverConfig
    from torch_checkpointing.staging import CheckpointStagerConfig

    staging = CheckpointStagerConfig(
        use_pinned_memory=False, use_non_blocking_copy=False, use_async_staging=False
    )
    saver = AsyncCheckpointSaverConfig(staging_config=staging)
    return CheckpointManager.Config(save=saver, storage_config=_storage()).build()


@contextmanager
def _save(state: State, folder: Path) -> Iterator[Work]:
    manager = _synchronous()

    def run() -> None:
        manager.save(str(folder / "tc"), state.tree)
        make_durable(folder / "tc")

    try:
        yield run
    finally:
        manager.close()


@contextmanager
def _stall(state: State, folder: Path) -> Iterator[Work]:
    manager = asynchronous()
    pending: list[Any] = []
    try:
        manager.save(str(folder / "first"), state.tree).result()
        state.step()
        yield lambda: pending.append(manager.save(str(folder / "second"), state.tree))
        pending[0].result()
    finally:
        manager.close()


@contextmanager
def _load(state: State, folder: Path) -> Iterator[Work]:
    manager = _synchronous()
    into = state.like()
    try:
        yield lambda: flat(manager.load(str(folder / "tc"), into=into.tree))
    finally:
        manager.close()


TORCH_CHECKPOINTING = Neighbour(
    "torch-checkpointing", "torch_checkpointing", "torch-checkpointing", "`CheckpointManager`, synchronous and then "
    "fsync of its files; for the stall asynchronous with staging at once, since without CUDA there is no other; "
    "`load(into=...)`; without its O_DIRECT, which ext4 and XFS refuse",
    save=_save, stall=_stall, load=_load,
)  # fmt: skip
