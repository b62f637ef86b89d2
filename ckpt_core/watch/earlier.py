"""The checkpoint before the one that is being saved, as watchers compare with it: read from the store, in pieces.

It is there after a restart as well, and no copy of the state is kept in memory for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np

from ckpt_core.model import Buffer, TensorSpec
from ckpt_core.repository import ChunkReader
from ckpt_core.tree import dtypes, tensor_paths
from ckpt_core.watch.pieces import Array

__all__ = ["EarlierCheckpoint", "EarlierTensor"]

Read = Callable[[int, int], Buffer]


@final
class EarlierTensor:
    """A stored tensor, read by ranges of its values in C order."""

    def __init__(self, spec: TensorSpec, read: Read) -> None:
        self.shape = spec.shape
        self.dtype = dtypes.numpy_dtype(spec.dtype)
        self._read = read

    def values(self, begin: int, end: int) -> Array:
        """Values `begin` to `end`. Raises CorruptionError, NotFoundError, StoreError."""
        size = self.dtype.itemsize
        return self._read(begin * size, end * size).view(self.dtype)


@final
class EarlierCheckpoint(Mapping[str, EarlierTensor]):
    """The tensors of a stored checkpoint by path. Every chunk read is checked, and read once where the ranges
    that are asked for follow one another."""

    def __init__(self, chunks: ChunkReader) -> None:
        self._chunks = chunks
        self._paths = {
            path: index
            for path, index in tensor_paths(chunks.manifest.state).items()
            if chunks.spec(index).dtype != "F4"  # two values a byte: no range of bytes is one of values
        }
        self._held: tuple[int, int, Buffer] = (-1, 0, np.empty(0, np.uint8))

    def __getitem__(self, path: str) -> EarlierTensor:
        index = self._paths[path]
        return EarlierTensor(self._chunks.spec(index), lambda begin, end: self._read(index, begin, end))

    def __iter__(self) -> Any:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def close(self) -> None:
        """Closes the packs."""
        self._chunks.close()

    def _read(self, index: int, begin: int, end: int) -> Buffer:
        """Whole chunks are read, since a digest covers a whole one; the last are kept for the next range."""
        held, start, data = self._held
        if held != index or begin < start or end > start + data.nbytes:
            chunk = self._chunks.manifest.chunk_bytes
            start, stop = begin // chunk * chunk, -(-end // chunk) * chunk
            data = self._chunks.read_range(index, start, stop)
            self._held = (index, start, data)
        return data[begin - start : end - start]
