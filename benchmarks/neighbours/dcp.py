"""torch.distributed.checkpoint in one process: `FileSystemWriter` with 1 and 4 threads, `async_save`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.neighbours.contract import Neighbour, Start, Work
from benchmarks.states import State, flat
from benchmarks.timing import make_durable

__all__ = ["DCP_1", "DCP_4", "held_stager", "module"]


def module() -> Any:
    """`torch.distributed.checkpoint`, which does not tell type checkers its names."""
    return importlib.import_module("torch.distributed.checkpoint")


def held_stager() -> Any:
    """A stager for every `async_save` of a run: it keeps its buffers. Without CUDA there is no pinned memory."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    return DefaultStager(StagingOptions(False, False, False, False))


def _save(threads: int) -> Start:
    @contextmanager
    def start(state: State, folder: Path) -> Iterator[Work]:
        dcp = module()

        def run() -> None:
            writer = dcp.FileSystemWriter(folder / "dcp", thread_count=threads, sync_files=True)
            dcp.save(state.tree, storage_writer=writer, no_dist=True)
            make_durable(folder / "dcp")

        yield run

    return start


def _stall(threads: int) -> Start:
    @contextmanager
    def start(state: State, folder: Path) -> Iterator[Work]:
        dcp, stager = module(), held_stager()
        pending: list[Any] = []

        def run() -> None:
            writer = dcp.FileSystemWriter(
                folder / f"dcp-{len(pending)}", thread_count=threads, sync_files=True
            )
            saving = dcp.async_save(state.tree, storage_writer=writer, async_stager=stager, no_dist=True)
            pending.append(getattr(saving, "upload_completion", saving))

        try:
            run()
            pending[0].result()
            state.step()
            yield run
            pending[-1].result()
        finally:
            stager.close()

    return start


@contextmanager
def _load(state: State, folder: Path) -> Iterator[Work]:
    dcp = module()

    into = state.like()

    def run() -> dict[str, Any]:
        dcp.load(into.tree, storage_reader=dcp.FileSystemReader(folder / "dcp"), no_dist=True)
        return flat(into.tree)

    yield run


@contextmanager
def _one(name: str, folder: Path) -> Iterator[Work]:
    import torch

    dcp = module()
    top, _, rest = name.partition("/")

    def run() -> dict[str, Any]:
        reader = dcp.FileSystemReader(folder / "dcp")
        # The flat name of `{"model": {"h.0.weight": ...}}` is `model.h.0.weight`.
        known = reader.read_metadata().state_dict_metadata[f"{top}.{rest}"]
        into = torch.empty(known.size, dtype=known.properties.dtype)
        dcp.load({top: {rest: into}}, storage_reader=reader, no_dist=True)
        return {name: into}

    yield run


DCP_1 = Neighbour(
    "DCP, 1 thread", "torch", "torch", "`dcp.save` and `async_save` with `FileSystemWriter(thread_count=1, "
    "sync_files=True)` and a `DefaultStager` that is held; then fsync of the folder; `dcp.load` into tensors "
    "that are there",
    save=_save(1), stall=_stall(1), load=_load, one=_one,
)  # fmt: skip
DCP_4 = Neighbour(
    "DCP, 4 threads", "torch", "torch", "the same with `thread_count=4`", save=_save(4), load=_load
)
