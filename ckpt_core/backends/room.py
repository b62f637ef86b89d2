"""Memory for tensors that need not fit into memory: where they are many bytes, a private file that is mapped.

It is how a view of a checkpoint is made where the tensors do not lie in its files as they are, and how an export has
them at hand.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ckpt_core.errors import StoreError
from ckpt_core.model import Buffer

__all__ = ["laid_out", "room_for"]

_IN_MEMORY = 64 << 20
_ALIGNED = 64
_PIECE = 8 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNKNOWN = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def room_for(sizes: Sequence[int], folder: Path | None = None) -> list[Buffer]:
    """Memory for tensors of so many bytes, each at a multiple of 64 bytes: up to 64 MiB in all as any other memory,
    else mapped from a file, whose pages the system can write out when it needs them.

    The file has no name, and is gone with the last of what was made of it. It is in `folder`; left out, where the
    system has its temporary files (`TMPDIR`). Raises StoreError where there is no room for all of it.
    """
    begins, end = [], 0
    for size in sizes:
        begins.append(end)
        end += -(-size // _ALIGNED) * _ALIGNED
    whole = np.empty(end, np.uint8) if end <= _IN_MEMORY else _mapped(end, folder)
    return [whole[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)]


def laid_out(
    read: Callable[[int, int, int], Buffer],
    sizes: Mapping[int, int],
    *,
    chunk_bytes: int,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, Buffer]:
    """The bytes of tensors by index in such memory. `read(index, begin, end)` gives those of a range, which begins
    with a chunk. `progress` is told the bytes done and in all."""
    piece = max(1, _PIECE // chunk_bytes) * chunk_bytes  # else a chunk would be read for each of its pieces
    room = dict(zip(sizes, room_for(list(sizes.values()), folder), strict=True))
    done, total = 0, sum(sizes.values())
    for index, out in room.items():
        for at in range(0, out.nbytes, piece):
            end = min(at + piece, out.nbytes)
            out[at:end] = read(index, at, end)
            done += end - at
            if progress is not None:
                progress(done, total)
    return room


def _mapped(nbytes: int, folder: Path | None) -> Buffer:
    where = str(folder or "no folder")
    try:
        where = str(folder or tempfile.gettempdir())
        with tempfile.TemporaryFile(dir=where) as file:
            _reserve(file.fileno(), nbytes)
            return np.frombuffer(mmap.mmap(file.fileno(), nbytes), np.uint8)
    except OSError as error:
        advice = "free some" if folder else "free some, or name another folder in TMPDIR"
        raise StoreError(
            f"{nbytes} bytes of tensors do not find room in a file in {where} ({error}): {advice}",
            kind="full" if error.errno in _FULL else "io",
            path=where,
        ) from error


def _reserve(fd: int, nbytes: int) -> None:
    """Takes the room on the disk, too: a process that writes to a page for which there is none is killed."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, nbytes)
            return
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
    os.truncate(fd, nbytes)
