"""Writing a checkpoint out as files that need no code of ours: safetensors, and plain values as JSON.

Whatever is written appears whole under its final name or not at all.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ckpt_core import ids
from ckpt_core.errors import StoreError, UsageError
from ckpt_core.model import TensorSpec
from ckpt_core.repository import ChunkReader
from ckpt_core.tree import dtypes

__all__ = ["STATE", "TENSORS", "new_file", "new_folder", "write_safetensors"]

TENSORS = "tensors.safetensors"
STATE = "state.json"
_PIECE = 8 << 20
_ADVICE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EACCES: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "its folder does not exist: make it first",
}


def write_safetensors(
    out: BinaryIO,
    tensors: Mapping[str, tuple[int, TensorSpec]],
    chunks: ChunkReader,
    metadata: Mapping[str, str],
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Streams tensors (name: index and spec) into a safetensors file; returns its bytes.

    Each byte is checked as it is read. What safetensors has no type for is written as bytes, its true type
    and shape under `ckpt.dtypes` in the metadata. Source of the format: https://github.com/huggingface/safetensors
    """
    if "__metadata__" in tensors:  # a name that the format keeps for itself
        tensors = {
            ("__metadata__[0]" if name == "__metadata__" else name): found for name, found in tensors.items()
        }
    order = sorted(tensors, key=lambda name: -dtypes.alignment(dtypes.stored_as(tensors[name][1]).dtype))
    header: dict[str, Any] = {}
    strange: dict[str, Any] = {}
    end = 0
    for name in order:
        spec = tensors[name][1]
        stored = dtypes.stored_as(spec)
        begin, end = end, end + dtypes.nbytes(spec)
        header[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": [begin, end]}
        if stored != spec:
            strange[name] = {"dtype": spec.dtype, "shape": spec.shape}
    facts = dict(metadata) | ({"ckpt.dtypes": json.dumps(strange)} if strange else {})
    text = json.dumps({"__metadata__": facts, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    out.write(len(text).to_bytes(8, "little"))
    out.write(text)
    done = 0
    for name in order:
        index, spec = tensors[name]
        size = dtypes.nbytes(spec)
        for begin in range(0, size, _PIECE):
            data = chunks.read_range(index, begin, min(begin + _PIECE, size))
            out.write(data.data)
            done += data.nbytes
            if progress is not None:
                progress(done, end)
    return 8 + len(text) + end


@contextmanager
def new_file(target: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A file that takes its name at the end, durable. Raises UsageError (kind `exists`), StoreError."""
    if target.is_dir():
        raise UsageError(
            f"{target} is a folder; name a file that ends in .safetensors", kind="exists", path=str(target)
        )
    if not force and _there(target):
        raise _exists(target)
    temporary = target.with_name(f".{target.name[:200]}.{ids.token()}.tmp")
    with _explained(target):
        try:
            with open(temporary, "xb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            if force:
                os.replace(temporary, target)
            else:
                _rename_if_free(temporary, target)
            _sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path, *, force: bool) -> Iterator[Path]:
    """A folder to put files in, which takes its name at the end, durable. With `force` it replaces an earlier
    one of ours, never a folder that holds anything else."""
    _check_folder(target, force)
    temporary = target.with_name(f".{target.name[:200]}.{ids.token()}.tmp")
    aside = temporary.with_suffix(".old")
    with _explained(target):
        try:
            temporary.mkdir()
            yield temporary
            for path in temporary.iterdir():
                _sync_file(path)
            _sync_folder(temporary)
            if _there(target) and any(target.iterdir()):
                os.rename(target, aside)
            try:
                os.rename(temporary, target)
            except OSError:
                if aside.exists():
                    os.rename(aside, target)
                raise
            _sync_folder(target.parent)
        finally:
            for folder in (temporary, aside):
                if folder is not aside or _there(target):
                    shutil.rmtree(folder, ignore_errors=True)


def _check_folder(target: Path, force: bool) -> None:
    if not _there(target):
        return
    if not target.is_dir() or target.is_symlink():
        raise UsageError(f"{target} is not a folder: choose another name", kind="exists", path=str(target))
    names = {path.name for path in target.iterdir()}
    if not names:
        return
    if not names <= {TENSORS, STATE}:
        other = sorted(names - {TENSORS, STATE})[0]
        raise UsageError(
            f"{target} holds other files ({other}), which are not overwritten: choose another folder",
            kind="exists",
            path=str(target),
        )
    if not force:
        raise _exists(target)


def _exists(target: Path) -> UsageError:
    return UsageError(f"{target} already exists; --force replaces it", kind="exists", path=str(target))


def _there(path: Path) -> bool:
    return os.path.lexists(path)


def _rename_if_free(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise _exists(target) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        if _there(target):  # a file system without hard links
            raise _exists(target) from None
        os.rename(temporary, target)


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, (StoreError, BrokenPipeError)):
            raise
        reason = _ADVICE.get(error.errno or 0, os.strerror(error.errno) if error.errno else str(error))
        kind = "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "io"
        raise StoreError(f"{target} was not written: {reason}", kind=kind, path=str(target)) from error


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # some file systems have no notion of it
        _sync_file(path)
