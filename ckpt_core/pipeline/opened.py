"""A checkpoint opened for reading: nothing is read until it is asked for, and then only what is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from ckpt_core.backends import StorageBackend
from ckpt_core.errors import NotFoundError, UsageError
from ckpt_core.format.documents import Manifest
from ckpt_core.model import Buffer, Checkpoint, TensorSpec
from ckpt_core.pipeline.filed import load_files, unpacked
from ckpt_core.repository import Repository, Verify
from ckpt_core.tree import (
    CodecRegistry,
    TensorCodec,
    backend_files,
    dtypes,
    plain_value,
    registry,
    tensors_in,
    walk,
)

__all__ = ["CheckpointReader", "Chunks", "LazyTensor", "open_checkpoint", "open_chunks"]


class Chunks(Protocol):
    """Where the bytes of tensors come from: a store's packs, or a state in memory."""

    def spec(self, index: int) -> TensorSpec: ...

    def read_range(self, index: int, begin: int, end: int) -> Buffer: ...

    def close(self) -> None: ...


class LazyTensor:
    """A stored tensor. `tensor[rows]` reads the chunks that hold those rows, `tensor[...]` all of it."""

    def __init__(self, path: str, index: int, chunks: Chunks, codec: TensorCodec) -> None:
        self.path = path
        self._index = index
        self._chunks = chunks
        self._codec = codec
        self._spec = chunks.spec(index)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of its axes."""
        return self._spec.shape

    @property
    def dtype(self) -> str:
        """Its element type by the format's name, as `F32`."""
        return self._spec.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return dtypes.nbytes(self._spec)

    def read(self) -> Any:
        """The whole tensor, in the framework that the reader was opened for."""
        return self._codec.wrap(self._spec, self._chunks.read_range(self._index, 0, self.nbytes))

    def __getitem__(self, key: Any) -> Any:
        """Indexing as numpy's; consecutive rows (a slice or integer first) are read without the rest."""
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) and key else (key, ())
        rows = self._rows(first)
        if rows is None:
            return self.read()[key]
        begin, end = rows
        row_spec = TensorSpec(self._spec.dtype, (1, *self.shape[1:]))
        row = dtypes.nbytes(row_spec)
        data = self._chunks.read_range(self._index, begin * row, end * row)
        part = self._codec.wrap(TensorSpec(self._spec.dtype, (end - begin, *self.shape[1:])), data)
        if isinstance(first, slice):
            return (
                part[(slice(None, None, first.step), *rest)] if first.step not in (None, 1) or rest else part
            )
        return part[(0, *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.asarray(self.read(), dtype=dtype)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a tensor of no axes has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<LazyTensor {self.path!r} {self.dtype} {list(self.shape)}>"

    def _rows(self, first: Any) -> tuple[int, int] | None:
        """The range of rows that an index needs; None where the whole is needed."""
        if not self.shape or self._spec.dtype == "F4":
            return None
        length = self.shape[0]
        if isinstance(first, slice):
            begin, end, step = first.indices(length)
            return (begin, max(begin, end)) if step > 0 else None
        if isinstance(first, (int, np.integer)) and not isinstance(first, bool):
            row = int(first) + (length if first < 0 else 0)
            if not 0 <= row < length:
                raise IndexError(f"row {int(first)} of {self.path!r}, which has {length}")
            return row, row + 1
        return None


def open_checkpoint(
    repository: Repository,
    manifest: Manifest,
    checkpoint: Checkpoint,
    *,
    verify: Verify = "lazy",
    framework: str | None = None,
    backend: StorageBackend | None = None,
) -> CheckpointReader:
    """A checkpoint for reading piece by piece. One that a storage backend made is loaded as a whole first.

    `backend`: one that need not be installed. Raises FormatError, MissingExtraError.
    """
    manifest, chunks = open_chunks(repository, manifest, verify=verify, backend=backend)
    return CheckpointReader(chunks, manifest, checkpoint, registry, framework=framework)


def open_chunks(
    repository: Repository,
    manifest: Manifest,
    *,
    verify: Verify = "lazy",
    backend: StorageBackend | None = None,
) -> tuple[Manifest, Chunks]:
    """The tree and the tensors of a checkpoint's state, whoever made it, and their bytes. See `open_checkpoint`."""
    packed = repository.reader(manifest, verify)
    if backend_files(manifest.state) is None:
        return manifest, packed
    with closing(packed):
        return unpacked(manifest, load_files(repository, manifest, packed, backend))


class CheckpointReader(Mapping[str, Any]):
    """The leaves of a checkpoint by path: LazyTensor for tensors, plain values as they are.

    Use it in a `with` block, or call `close`. Thread-safe.
    """

    def __init__(
        self,
        chunks: Chunks,
        manifest: Manifest,
        checkpoint: Checkpoint,
        registry: CodecRegistry,
        *,
        framework: str | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.manifest = manifest
        self._chunks = chunks
        self._registry = registry
        self._framework = framework
        self._leaves = dict(walk(manifest.state))
        self._tensors = tensors_in(self._leaves.items())

    def __getitem__(self, path: str) -> Any:
        if path in self._tensors:
            return self.tensor(path)
        if path in self._leaves:
            return plain_value(self._leaves[path])
        below = sorted(p for p in self._leaves if p.startswith(f"{path}/"))
        hint = (
            f"; it is a branch: try {below[0]!r}"
            if below
            else f"; it holds {', '.join(sorted(self)[:6])}, ..."
        )
        raise NotFoundError(f"the checkpoint has no leaf {path!r}{hint}", kind="path", path=path)

    def tensor(self, path: str) -> LazyTensor:
        """The tensor at a path. Raises UsageError for a plain value."""
        if path not in self._tensors:
            raise UsageError(f"{path!r} is not a tensor of this checkpoint", kind="path", path=path)
        index = self._tensors[path]
        name = self._framework or self.manifest.tensors[index].kind
        codec = self._registry.tensor_named("numpy" if name in ("bytes", "bytearray") else name)
        return LazyTensor(path, index, self._chunks, codec)

    def tensors(self) -> dict[str, LazyTensor]:
        """Every tensor by its path, in the order of the state."""
        return {path: self.tensor(path) for path in self._tensors}

    def __contains__(self, path: object) -> bool:
        return path in self._leaves

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def close(self) -> None:
        """Closes the packs."""
        self._chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        values = sum(math.prod(tensor.shape) for tensor in self.manifest.tensors)
        held = f"{len(self._tensors)} tensors, {values} values"
        return f"<CheckpointReader {self.checkpoint.id} step={self.checkpoint.step} {held}>"
