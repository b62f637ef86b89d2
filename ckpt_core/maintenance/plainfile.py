"""The safetensors file that the tensors of a checkpoint make, any part of it at a time, without making it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import final

from ckpt_core.format.tensorfile import head_of
from ckpt_core.model import Buffer, TensorSpec
from ckpt_core.repository import ChunkReader
from ckpt_core.tree import dtypes

__all__ = ["PlainFile"]

_PIECE = 8 << 20


@final
class PlainFile:
    """`tensors` (name: index and spec) as one file, of which nothing is held: `read` takes it from the chunks."""

    def __init__(self, tensors: Mapping[str, tuple[int, TensorSpec]], metadata: Mapping[str, str]) -> None:
        # `__metadata__` is a name that the format keeps for itself.
        named = {f"{name}[0]" if name == "__metadata__" else name: found for name, found in tensors.items()}
        self._head, order = head_of({name: spec for name, (_, spec) in named.items()}, metadata)
        self._places: list[tuple[int, int, int]] = []  # (index, begin, end) in the file
        self.size = len(self._head)
        for name in order:
            index, spec = named[name]
            begin, self.size = self.size, self.size + dtypes.nbytes(spec)
            self._places.append((index, begin, self.size))

    def read(self, chunks: ChunkReader, begin: int, end: int) -> Iterator[bytes | Buffer]:
        """The bytes from `begin` to `end`, a few megabytes at a time, each checked as it is read. Raises
        CorruptionError."""
        if begin < len(self._head):
            yield self._head[begin:end]
        for index, first, last in self._places:
            stop = min(end, last) - first
            for at in range(max(begin - first, 0), stop, _PIECE):
                yield chunks.read_range(index, at, min(at + _PIECE, stop))
