"""How the benchmarks use this engine: by its public names, as a training program would."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.states import State, flat
from ckpt_core import CheckpointManager
from ckpt_core.stores import Store

__all__ = [
    "LAZY", "load_fresh", "load_into", "manager_at", "not_built", "one_tensor", "save", "save_first", "save_second",
    "save_second_jax", "torch_checkpointer", "unsynced",
]  # fmt: skip

Work = Callable[[], Any]


LAZY = {"staging": "lazy"}
"""The option of an adapter for PyTorch by which parameters and moments are copied while training goes on."""


def not_built(what: Callable[..., Any], options: Mapping[str, Any]) -> str | None:
    """Which of the options this version does not know; None where it knows them all."""
    known = inspect.signature(what).parameters
    unknown = [f"{name}={value!r}" for name, value in options.items() if name not in known]
    return f"not built: {what.__name__} has no {', '.join(unknown)}" if unknown else None


def manager_at(folder: Path | Store, **options: Any) -> CheckpointManager:
    """A manager for the experiment `bench`."""
    return CheckpointManager(folder, experiment="bench", **options)


def torch_checkpointer(folder: Path, model: Any, optimizer: Any, **options: Any) -> Any:
    """What a training loop of PyTorch uses: saves after the steps that `every_n_steps` says."""
    from ckpt_torch import TorchCheckpointer

    return TorchCheckpointer(
        folder, experiment="bench", model=model, optimizer=optimizer, signals=(), **options
    )


@contextmanager
def save(state: State, folder: Path, **options: Any) -> Iterator[Work]:
    """A synchronous save, from the live tensors: durable, and every byte under a digest."""
    with manager_at(folder, **options) as manager:
        yield lambda: manager.save(state.tree, step=1, wait=True)


@contextmanager
def save_first(tree: dict[str, Any], folder: Path, **options: Any) -> Iterator[Work]:
    """The stall of the first asynchronous save of a process: the memory for the copy is not there yet."""
    with manager_at(folder, **options) as manager:
        yield lambda: manager.save(tree, step=1)


@contextmanager
def save_second(
    tree: dict[str, Any], folder: Path, change: Callable[[], object] | None = None, **options: Any
) -> Iterator[Work]:
    """The stall of every later one. `change` makes a step of training in between."""
    with manager_at(folder, **options) as manager:
        manager.save(tree, step=1).result()
        if change is not None:
            change()
        yield lambda: manager.save(tree, step=2)


@contextmanager
def save_second_jax(tree: dict[str, Any], folder: Path) -> Iterator[Work]:
    """The stall of every later save of a loop in JAX: what `next` takes longer between two iterations."""
    import jax

    from ckpt_jax import JaxCheckpointer

    states = tree, jax.tree.map(lambda array: array.copy(), tree)  # a step of training makes new arrays
    with JaxCheckpointer(folder, experiment="bench", every_n_steps=1, signals=()) as ckpt:
        ckpt.restore(tree)
        steps = ckpt.steps(3)
        for state in states:  # the second turn begins with the save of the first
            next(steps)
            ckpt.step(state)
        ckpt.manager.wait()
        yield lambda: next(steps)
        ckpt.manager.wait()


@contextmanager
def load_into(state: State, folder: Path) -> Iterator[Work]:
    """Every byte checked, into tensors that are there."""
    into = state.like()
    with manager_at(folder) as manager:
        yield lambda: flat(manager.load(like=into.tree))


@contextmanager
def load_fresh(state: State, folder: Path) -> Iterator[Work]:
    """Every byte checked, into new tensors."""
    with manager_at(folder) as manager:
        yield lambda: flat(manager.load())


@contextmanager
def one_tensor(name: str, folder: Path) -> Iterator[Work]:
    """One tensor by its path, from a manager that is open."""

    def run() -> dict[str, Any]:
        with manager.open("latest") as reader:
            return {name: reader[name].read()}

    with manager_at(folder) as manager:
        yield run


@contextmanager
def unsynced() -> Iterator[None]:
    """No fsync inside, for filling a store that will be measured later and may be lost before."""
    real = os.fsync
    os.fsync = lambda fd: None
    try:
        yield
    finally:
        os.fsync = real
