"""One file, written by one call: `torch.save`, safetensors; and Lightning's way to do the first in a thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.neighbours.contract import Neighbour, Work
from benchmarks.states import State, flat, touch_pages
from benchmarks.timing import make_durable

__all__ = ["LIGHTNING", "SAFETENSORS", "TORCH"]


@contextmanager
def _torch_save(state: State, folder: Path) -> Iterator[Work]:
    import torch

    def run() -> None:
        torch.save(state.tree, folder / "state.pt")
        make_durable(folder / "state.pt")

    yield run


@contextmanager
def _torch_load(state: State, folder: Path) -> Iterator[Work]:
    import torch

    yield lambda: flat(torch.load(folder / "state.pt", weights_only=True))


@contextmanager
def _torch_one(name: str, folder: Path) -> Iterator[Work]:
    import torch

    def run() -> dict[str, Any]:
        found = flat(torch.load(folder / "state.pt", weights_only=True, mmap=True))
        return {name: found[name].clone()}

    yield run


@contextmanager
def _safetensors_save(state: State, folder: Path) -> Iterator[Work]:
    from safetensors.torch import save_file

    def run() -> None:
        save_file(state.tensors, folder / "state.safetensors")
        make_durable(folder / "state.safetensors")

    yield run


@contextmanager
def _safetensors_load(state: State, folder: Path) -> Iterator[Work]:
    from safetensors.torch import load_file

    yield lambda: touch_pages(load_file(folder / "state.safetensors"))


@contextmanager
def _safetensors_one(name: str, folder: Path) -> Iterator[Work]:
    from safetensors import safe_open

    def run() -> dict[str, Any]:
        with safe_open(folder / "state.safetensors", "pt") as file:
            return {name: file.get_tensor(name).clone()}

    yield run


@contextmanager
def _lightning_stall(state: State, folder: Path) -> Iterator[Work]:
    from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

    io = AsyncCheckpointIO(TorchCheckpointIO())
    try:
        yield lambda: io.save_checkpoint(state.tree, folder / "state.ckpt")
    finally:
        io.teardown()


TORCH = Neighbour(
    "torch.save", "torch", "torch", "`torch.save` to a file, then fsync of file and folder; "
    "`torch.load(weights_only=True)`, for one tensor with `mmap=True`",
    save=_torch_save, load=_torch_load, one=_torch_one,
)  # fmt: skip
SAFETENSORS = Neighbour(
    "safetensors", "safetensors", "safetensors", "`save_file`, then fsync of file and folder; `load_file` and a "
    "touch of every page, since it only maps the file; for one tensor `safe_open`",
    save=_safetensors_save, load=_safetensors_load, one=_safetensors_one,
)  # fmt: skip
LIGHTNING = Neighbour(
    "Lightning AsyncCheckpointIO", "lightning", "lightning", "`AsyncCheckpointIO(TorchCheckpointIO())`, which "
    "clones every tensor and saves in a thread",
    stall=_lightning_stall,
)  # fmt: skip
