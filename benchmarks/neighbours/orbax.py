"""Orbax, by its API of version 0 and by that of version 1. The arrays are JAX's, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.neighbours.contract import Neighbour, Work
from benchmarks.states import State, flat
from benchmarks.timing import make_durable

__all__ = ["ORBAX_V0", "ORBAX_V1"]


def _abstract(tree: Any) -> Any:
    """What Orbax wants to know of the arrays that it loads: shape, dtype, and where they go."""
    import jax

    shape: Any = jax.ShapeDtypeStruct
    return jax.tree.map(lambda x: shape(x.shape, x.dtype, sharding=x.sharding), tree)


@contextmanager
def _save_v0(state: State, folder: Path) -> Iterator[Work]:
    import orbax.checkpoint as ocp

    tree = state.as_jax()
    with ocp.StandardCheckpointer() as checkpointer:

        def run() -> None:
            checkpointer.save(folder / "orbax", tree)
            checkpointer.wait_until_finished()
            make_durable(folder / "orbax")

        yield run


@contextmanager
def _stall_v0(state: State, folder: Path) -> Iterator[Work]:
    import orbax.checkpoint as ocp

    tree = state.as_jax()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "first", tree)
        checkpointer.wait_until_finished()
        yield lambda: checkpointer.save(folder / "second", tree)
        checkpointer.wait_until_finished()


@contextmanager
def _load_v0(state: State, folder: Path) -> Iterator[Work]:
    import orbax.checkpoint as ocp

    target = _abstract(state.as_jax())
    with ocp.StandardCheckpointer() as checkpointer:
        yield lambda: flat(checkpointer.restore(folder / "orbax", target))


@contextmanager
def _save_v1(state: State, folder: Path) -> Iterator[Work]:
    import orbax.checkpoint.experimental.v1 as ocp

    tree = state.as_jax()

    def run() -> None:
        ocp.save(folder / "orbax", tree)
        make_durable(folder / "orbax")

    yield run


@contextmanager
def _stall_v1(state: State, folder: Path) -> Iterator[Work]:
    import orbax.checkpoint.experimental.v1 as ocp

    tree = state.as_jax()
    pending: list[Any] = []
    ocp.save(folder / "first", tree)
    yield lambda: pending.append(ocp.save_async(folder / "second", tree))
    pending[0].result()


@contextmanager
def _load_v1(state: State, folder: Path) -> Iterator[Work]:
    import orbax.checkpoint.experimental.v1 as ocp

    target = _abstract(state.as_jax())
    yield lambda: flat(ocp.load(folder / "orbax", target))


ORBAX_V0 = Neighbour(
    "Orbax v0", "orbax.checkpoint", "orbax-checkpoint", "`StandardCheckpointer`, `save` and "
    "`wait_until_finished`, then fsync of its files; `restore` with the shapes and shardings known",
    save=_save_v0, stall=_stall_v0, load=_load_v0,
)  # fmt: skip
ORBAX_V1 = Neighbour(
    "Orbax v1", "orbax.checkpoint.experimental.v1", "orbax-checkpoint", "`save`, `save_async`, `load`, then fsync "
    "of its files",
    save=_save_v1, stall=_stall_v1, load=_load_v1,
)  # fmt: skip
