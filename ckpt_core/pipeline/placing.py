"""Files and folders outside of a store, which appear whole under their final names or not at all, durable."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ckpt_core import ids
from ckpt_core.errors import StoreError, UsageError

__all__ = ["STATE", "TENSORS", "new_file", "new_folder", "placed"]

TENSORS = "tensors.safetensors"
STATE = "state.json"
_ADVICE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EACCES: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "its folder does not exist: make it first",
}


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


@contextmanager
def placed(target: Path, *, force: bool) -> Iterator[Path]:
    """A path for a file or folder of the target's name, in a private folder beside it, which takes the target's place
    at the end. With `force` it replaces a file; a folder with anything in it never. Raises UsageError, StoreError."""
    if target.is_dir() and not target.is_symlink():
        if any(target.iterdir()):
            raise UsageError(
                f"{target} is a folder with files in it: choose another name, or remove it first",
                kind="exists",
                path=str(target),
            )
    elif _there(target) and not force:
        raise _exists(target)
    private = target.with_name(f".{target.name[:200]}.{ids.token()}.tmp")
    with _explained(target):
        try:
            private.mkdir(0o700)
            made = private / target.name
            yield made
            for folder, _, names in os.walk(made):
                for name in names:
                    _sync_file(Path(folder, name))
                _sync_folder(Path(folder))
            if made.is_dir():
                os.rename(made, target)  # over an empty folder, but over nothing else
            else:
                _sync_file(made)
                os.replace(made, target) if force else _rename_if_free(made, target)
            _sync_folder(target.parent)
        finally:
            shutil.rmtree(private, ignore_errors=True)


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
