"""The copy of live tensors to host memory that lets training go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from ckpt_core.format.pack import pack_order
from ckpt_core.model import Buffer, Snapshot, StagedTensor
from ckpt_core.pages import pages
from ckpt_core.tree import Flat, Leaf, dtypes, registry

__all__ = ["Arena", "ArenaPool", "StagedArrays", "copy"]


class Arena:
    """One block of host memory that holds one staged state; reused by the next one."""

    def __init__(self, make_room: Callable[[int], None] = lambda nbytes: None) -> None:
        self._make_room = make_room
        self._block: Buffer = np.empty(0, np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes up."""
        return self._block.nbytes

    def take(self, nbytes: int) -> Buffer:
        """The first `nbytes` of the block, which begins with a page; the block grows if it must.

        Raises MemoryError.
        """
        if self._block.nbytes < nbytes:
            self.clear()  # let go of the old one before the new one is there
            self._make_room(nbytes)
            self._block = pages(nbytes)
        return self._block[:nbytes]

    def clear(self) -> None:
        """Lets go of the memory."""
        self._block = np.empty(0, np.uint8)


class ArenaPool:
    """Arenas that no save is using, of at most `limit` bytes together with those that are in use.

    As many exist as saves were ever pending at once.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._free: list[Arena] = []
        self._used: list[Arena] = []

    def acquire(self) -> Arena:
        """An arena for one save, to be given back with `release`."""
        with self._lock:
            arena = self._free.pop() if self._free else Arena(self._make_room)
            self._used.append(arena)
            return arena

    def release(self, arena: Arena) -> None:
        """Gives an arena back for the next save."""
        with self._lock:
            self._used.remove(arena)
            self._free.append(arena)

    def clear(self) -> None:
        """Lets go of all unused memory."""
        with self._lock:
            self._free.clear()

    def _make_room(self, nbytes: int) -> None:
        if self._limit is None:
            return
        with self._lock:
            used = sum(arena.nbytes for arena in self._used)
            if used + sum(arena.nbytes for arena in self._free) + nbytes > self._limit:
                self._free.clear()
        if used + nbytes > self._limit:
            raise MemoryError(
                f"a copy of its {nbytes} bytes, beside {used} that are staged, is over staged_bytes={self._limit}"
            )


Copies = list[Callable[[], None]]


def copy(
    flat: Flat, arena: Arena, is_lazy: Callable[[Any], bool] = lambda value: False
) -> tuple[Snapshot, Copies]:
    """A snapshot that the live tensors have no part in: they may change as soon as this returns, but for those
    that `is_lazy` names, whose copies are still to be made.

    It is copied to the arena, but for what a codec can hold on to. There it lies as it would in a pack, so that
    it can be written from there as it is.
    """
    later: Copies = []
    staged: list[StagedTensor | None] = [None] * len(flat.leaves)
    copied: list[int] = []
    for index, leaf in enumerate(flat.leaves):
        held = _hold(leaf)
        if held is None:
            copied.append(index)
        else:
            staged[index] = StagedTensor(leaf.path, leaf.codec.name, leaf.spec, held)
    sizes = [dtypes.nbytes(flat.leaves[index].spec) for index in copied]
    block = arena.take(sum(sizes))
    end = 0
    for number in pack_order([flat.leaves[index].spec for index in copied]):
        index, begin, end = copied[number], end, end + sizes[number]
        leaf, data = flat.leaves[index], block[begin:end]
        if data.nbytes:
            make = partial(_copy, leaf, data)
            later.append(make) if is_lazy(leaf.value) else make()
        staged[index] = StagedTensor(leaf.path, leaf.codec.name, leaf.spec, data)
    return Snapshot(flat.tree, tuple(tensor for tensor in staged if tensor is not None)), later


def _copy(leaf: Leaf, out: Buffer) -> None:
    source = leaf.codec.view(leaf.value)
    if source is None:
        leaf.codec.copy_into(leaf.value, out)
    else:  # plain bytes: nobody copies them quicker than the C library
        np.copyto(out, source)


def _hold(leaf: Leaf) -> Buffer | None:
    hold = getattr(leaf.codec, "hold", None)  # a codec may do without
    return None if hold is None else hold(leaf.value)


class StagedArrays(Mapping[str, np.ndarray[Any, Any]]):
    """The tensors of a snapshot by path, as numpy arrays over its memory, which cannot be written to."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._tensors = {tensor.path: tensor for tensor in snapshot.tensors}

    def __getitem__(self, path: str) -> np.ndarray[Any, Any]:
        tensor = self._tensors[path]
        array: np.ndarray[Any, Any] = registry.tensor_named("numpy").wrap(tensor.spec, tensor.data)
        array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
