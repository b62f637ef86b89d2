"""The copy of live tensors to host memory that lets training go on."""

from __future__ import annotations

import threading

import numpy as np

from ckpt_core.model import Buffer, Snapshot, StagedTensor
from ckpt_core.tree import Flat, dtypes

__all__ = ["Arena", "ArenaPool", "borrow", "copy"]

_ALIGN = 4096


class Arena:
    """One block of host memory that holds one staged state; reused by the next one."""

    def __init__(self) -> None:
        self._block: Buffer = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> Buffer:
        """The first `nbytes` of the block, aligned to a page; the block grows if it must."""
        if self._block.nbytes < nbytes + _ALIGN:
            self._block = np.empty(0, np.uint8)  # let go of the old one before the new one is there
            self._block = np.empty(nbytes + _ALIGN, np.uint8)
        start = -int(self._block.__array_interface__["data"][0]) % _ALIGN
        return self._block[start : start + nbytes]


class ArenaPool:
    """Arenas that no save is using. As many exist as saves were ever pending at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Arena] = []

    def acquire(self) -> Arena:
        """An arena for one save, to be given back with `release`."""
        with self._lock:
            return self._free.pop() if self._free else Arena()

    def release(self, arena: Arena) -> None:
        """Gives an arena back for the next save."""
        with self._lock:
            self._free.append(arena)

    def clear(self) -> None:
        """Lets go of all unused memory."""
        with self._lock:
            self._free.clear()


def copy(flat: Flat, arena: Arena) -> Snapshot:
    """A snapshot whose tensors are copies in the arena: the live ones may change as soon as this returns."""
    sizes = [dtypes.nbytes(leaf.spec) for leaf in flat.leaves]
    starts, end = [], 0
    for size in sizes:
        line = _line(size)
        starts.append(-(-end // line) * line)
        end = starts[-1] + size
    block = arena.take(end)
    staged = []
    for leaf, start, size in zip(flat.leaves, starts, sizes, strict=True):
        data = block[start : start + size]
        if size:
            leaf.codec.copy_into(leaf.value, data)
        staged.append(StagedTensor(leaf.path, leaf.codec.name, leaf.spec, data))
    return Snapshot(flat.tree, tuple(staged))


def borrow(flat: Flat) -> Snapshot:
    """A snapshot over the live tensors themselves, for a caller that waits until it is written.

    Only tensors that are not contiguous in host memory are copied.
    """
    staged = []
    for leaf in flat.leaves:
        data = leaf.codec.view(leaf.value)
        if data is None:
            data = np.empty(dtypes.nbytes(leaf.spec), np.uint8)
            leaf.codec.copy_into(leaf.value, data)
        staged.append(StagedTensor(leaf.path, leaf.codec.name, leaf.spec, data))
    return Snapshot(flat.tree, tuple(staged))


def _line(size: int) -> int:
    """Large tensors start on a page, small ones on a cache line, so that thousands of them stay dense."""
    return _ALIGN if size >= _ALIGN else 64
