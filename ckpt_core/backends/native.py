"""The backend `native`: a state as a store of its own with one checkpoint, which every command here reads.

A manager does not go this way round: it writes its packs itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from ckpt_core import ids
from ckpt_core.backends.contract import StorageBackend
from ckpt_core.backends.parts import on_device
from ckpt_core.backends.room import laid_out
from ckpt_core.errors import FormatError
from ckpt_core.model import Attempt, Buffer
from ckpt_core.repository import ChunkReader, Draft, Repository, layout
from ckpt_core.stores import LocalStore
from ckpt_core.tree import borrow, dtypes, flatten, rebuild, registry

__all__ = ["NativeBackend"]

_EXPERIMENT = "state"


class NativeBackend(StorageBackend):
    """A folder that is a store with one checkpoint, `state@latest`."""

    name = "native"

    def save_checkpoint(self, data: Any, path: Path) -> dict[str, Any]:
        repository = Repository.open(LocalStore(path), create=True)
        snapshot = borrow(flatten(data, registry))
        made = ids.new_ulid()
        draft = Draft(_EXPERIMENT, 0, Attempt(1, made, made), {}, {})
        repository.commit(snapshot, draft)
        return {}

    def load_checkpoint(self, path: Path, device: str | None = None) -> Any:
        return on_device(_read(path, _in_memory), device)

    def view_checkpoint(self, path: Path) -> Any:
        return _read(path, _in_room)

    def recognises(self, path: Path) -> bool:
        return (path / layout.STORE_DOCUMENT).is_file()


def _read(path: Path, read: Callable[[ChunkReader, Iterable[int]], dict[int, Buffer]]) -> Any:
    repository = Repository.open(LocalStore(path))
    keys = list(repository.manifest_keys())
    if len(keys) != 1:
        raise FormatError(
            f"{path} is a store of {len(keys)} checkpoints, not of one: `ckpt copy` takes those of a store",
            kind="store",
        )
    manifest = repository.read(keys[0].key).manifest
    with closing(repository.reader(manifest)) as chunks:
        chunks.check_headers()
        buffers = read(chunks, range(len(manifest.tensors)))
    values: dict[int, Any] = {}

    def get(index: int, target: Any) -> Any:
        if index not in values:
            codec = registry.tensor_named(manifest.tensors[index].kind)
            values[index] = codec.wrap(chunks.spec(index), buffers[index])
        return values[index]

    return rebuild(manifest.state, get, registry)


def _in_memory(chunks: ChunkReader, tensors: Iterable[int]) -> dict[int, Buffer]:
    buffers = {index: chunks.fresh(index) for index in tensors}
    chunks.read_all(buffers.items())
    return buffers


def _in_room(chunks: ChunkReader, tensors: Iterable[int]) -> dict[int, Buffer]:
    sizes = {index: dtypes.nbytes(chunks.spec(index)) for index in tensors}
    return laid_out(chunks.read_range, sizes, chunk_bytes=chunks.manifest.chunk_bytes)
