"""Checkpoints that a storage backend makes: the files that it wrote as tensors of bytes, and back.

Such a checkpoint is like any other to all that chunks, hashes, commits, verifies, mirrors and repairs: only its tree
says which backend knows what the files mean.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ckpt_core.backends import StorageBackend, find_backend
from ckpt_core.errors import (
    CkptError,
    FormatError,
    MissingExtraError,
    StateError,
    StoreError,
)
from ckpt_core.format.documents import Manifest, TensorRecord
from ckpt_core.model import Buffer, Snapshot, StagedTensor, TensorSpec
from ckpt_core.pipeline.scratch import scratch_folder
from ckpt_core.repository import ChunkReader, Repository
from ckpt_core.tree import (
    BackendFiles,
    backend_files,
    backend_tree,
    borrow,
    dtypes,
    flatten,
    is_file_name,
    rebuild,
    registry,
)

__all__ = ["MemoryChunks", "backend_for", "files_of", "load_files", "unpacked"]

_KIND = "bytes"
_PIECE = 8 << 20
_FACTS = 64 << 10
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def files_of(
    backend: StorageBackend, snapshot: Snapshot, repository: Repository
) -> Iterator[tuple[Snapshot, dict[str, Any]]]:
    """The files that a backend makes of a snapshot, as a snapshot, and what it says of them. They are mapped into
    memory, and gone at the end. Raises StateError, StoreError."""
    with scratch_folder(repository.store) as folder:
        path = folder / f"checkpoint{backend.suffix}"
        try:
            facts = backend.save_checkpoint(_state_of(snapshot), path)
        except CkptError:
            raise
        except Exception as error:
            raise _unsaved(backend, error) from error
        names = sorted(_files_below(backend, folder))
        if not names or not all(name == path.name or name.startswith(f"{path.name}/") for name in names):
            raise _refused(backend, f"it has written {names[:3] or 'nothing'}, and not to {path.name}")
        tensors = tuple(_staged(folder, name) for name in names)
        tree = backend_tree(backend.name, path.name, {name: index for index, name in enumerate(names)})
        yield Snapshot(tree, tensors), {"backend": {**_checked_facts(backend, facts), "name": backend.name}}


def backend_for(made: BackendFiles, own: StorageBackend | None) -> StorageBackend:
    """The backend of a checkpoint: that of the manager, if it is of that name, or the one installed. Raises
    FormatError, MissingExtraError."""
    if own is not None and own.name == made.name:
        return own
    try:
        return find_backend(made.name)
    except MissingExtraError:
        raise
    except CkptError as error:
        raise FormatError(
            f"this checkpoint was saved by the storage backend {made.name!r}, which is not installed here: install "
            "its package, or open the manager with backend=",
            kind="backend",
            backend=made.name,
        ) from error


def load_files(
    repository: Repository, manifest: Manifest, chunks: ChunkReader, own: StorageBackend | None = None
) -> Any:
    """The state of a checkpoint that a backend made: its files are written to a private path, and every byte is
    checked by `chunks` before the backend sees them. Raises FormatError, CorruptionError, StoreError."""
    made = backend_files(manifest.state)
    assert made is not None, "the caller has looked"
    backend = backend_for(made, own)
    with scratch_folder(repository.store) as folder:
        for name, index in made.files.items():
            _materialise(folder / name, chunks, index)
        try:
            return backend.load_checkpoint(folder / made.path)
        except MissingExtraError:
            raise
        except Exception as error:  # the bytes are those that were saved: no other copy of them is better
            raise _unread(backend, error) from error


class MemoryChunks:
    """The tensors of a state in memory, asked for as a `ChunkReader` is."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._tensors = snapshot.tensors

    def spec(self, index: int) -> TensorSpec:
        """Element type and shape of a tensor."""
        return self._tensors[index].spec

    def fresh(self, index: int) -> Buffer:
        """Memory for the whole of a tensor."""
        return np.empty(self._tensors[index].data.nbytes, np.uint8)

    def read_range(self, index: int, begin: int, end: int) -> Buffer:
        """Bytes `begin` to `end` of a tensor."""
        return self._tensors[index].data[begin:end].copy()

    def read_all(self, wanted: Iterable[tuple[int, Buffer]]) -> None:
        """Fills each buffer with the whole of a tensor."""
        for index, out in wanted:
            out[:] = self._tensors[index].data

    def check_headers(self, indices: Iterable[int] | None = None) -> None:
        """There are none: they were checked when the files were read."""

    def close(self) -> None:
        """Nothing is held open."""


def unpacked(manifest: Manifest, state: Any) -> tuple[Manifest, MemoryChunks]:
    """A state that a backend loaded as if its checkpoint held it: with its own tree and tensors."""
    snapshot = borrow(flatten(state, registry))
    records = tuple(TensorRecord(t.spec.dtype, t.spec.shape, (), t.kind) for t in snapshot.tensors)
    return msgspec.structs.replace(manifest, state=snapshot.tree, tensors=records), MemoryChunks(snapshot)


def _state_of(snapshot: Snapshot) -> Any:
    """The state as its user had it, over the memory of the snapshot."""
    values: dict[int, Any] = {}

    def get(index: int, target: Any) -> Any:
        if index not in values:
            tensor = snapshot.tensors[index]
            values[index] = registry.tensor_named(tensor.kind).wrap(tensor.spec, tensor.data)
        return values[index]

    return rebuild(snapshot.tree, get, registry)


def _files_below(backend: StorageBackend, folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        for name in (*names, *folders):
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            mode = path.lstat().st_mode
            if not is_file_name(relative):
                raise _refused(backend, f"no other machine could have a file {relative!a}")
            if stat.S_ISREG(mode):
                yield relative
            elif not stat.S_ISDIR(mode):
                raise _refused(backend, f"{relative} is neither a file nor a folder")


def _staged(folder: Path, name: str) -> StagedTensor:
    size = (folder / name).stat().st_size
    data = np.asarray(np.memmap(folder / name, np.uint8, "r")) if size else np.empty(0, np.uint8)
    return StagedTensor(name.replace("~", "~0").replace("/", "~1"), _KIND, TensorSpec("U8", (size,)), data)


def _materialise(path: Path, chunks: ChunkReader, index: int) -> None:
    size = dtypes.nbytes(chunks.spec(index))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as out:
            for begin in range(0, size, _PIECE):
                out.write(chunks.read_range(index, begin, min(begin + _PIECE, size)).data)
        path.chmod(0o400)
    except OSError as error:
        if isinstance(error, CkptError):
            raise
        kind = "full" if error.errno in _FULL else "io"
        raise StoreError(f"the files of the checkpoint cannot be laid out: {error}", kind=kind) from error


def _checked_facts(backend: StorageBackend, facts: Any) -> dict[str, Any]:
    try:
        text = json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _refused(backend, f"what save_checkpoint returned is not plain JSON: {error}") from error
    if not isinstance(facts, dict) or len(text) > _FACTS:
        raise _refused(backend, f"save_checkpoint must return a dict of at most {_FACTS} characters as JSON")
    return dict(json.loads(text))


def _refused(backend: StorageBackend, reason: str) -> StateError:
    return StateError(f"the storage backend {backend.name!r} did not save: {reason}", kind="backend")


def _unsaved(backend: StorageBackend, error: Exception) -> CkptError:
    if isinstance(error, OSError):
        kind = "full" if error.errno in _FULL else "io"
        return StoreError(f"the storage backend {backend.name!r} could not write: {error}", kind=kind)
    return _refused(backend, f"{type(error).__name__}: {error}")


def _unread(backend: StorageBackend, error: Exception) -> FormatError:
    return FormatError(
        f"the storage backend {backend.name!r} could not read what it once wrote, which is intact: "
        f"{type(error).__name__}: {error}",
        kind="backend",
        backend=backend.name,
    )
