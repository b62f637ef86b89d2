"""What the machine itself can do, measured in the same run: disk past the page cache, memory, SHA-256."""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import Contender

__all__ = [
    "RAW_READ",
    "RAW_WRITE",
    "direct_works",
    "memcpy",
    "raw_read",
    "raw_write",
    "sha256",
    "write_raw_file",
]

BLOCK = 8 << 20
READ = 1 << 20  # disks are quicker with these than with larger ones
THREADS = 2
RAW_WRITE = "raw O_DIRECT write + fsync"
RAW_READ = "raw O_DIRECT read"
_ALIGN = 4096


def direct_works(folder: Path) -> bool:
    """Whether the file system takes O_DIRECT; where it does not, the raw figures go through the page cache."""
    path = folder / "direct"
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | _flag(), 0o600))
    except OSError:
        return False
    finally:
        path.unlink(missing_ok=True)
    return bool(_flag())


def _flag() -> int:
    return getattr(os, "O_DIRECT", 0)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | _flag(), 0o600)
    except OSError:
        return os.open(path, flags, 0o600)


def _block() -> np.ndarray[Any, Any]:
    """Aligned memory with random bytes in it: no disk is quicker with them than with a state's."""
    block = np.frombuffer(mmap.mmap(-1, BLOCK), np.uint8)
    block[:] = np.frombuffer(np.random.default_rng(3).bytes(BLOCK), np.uint8)
    return block


def write_raw_file(path: Path, nbytes: int, blocks: Sequence[np.ndarray[Any, Any]]) -> None:
    """A file of so many bytes (rounded up to 4 KiB), allocated first, written by threads, made durable."""
    total = -(-nbytes // _ALIGN) * _ALIGN
    descriptor = _open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.posix_fallocate(descriptor, 0, total)

        def write(offset: int, block: np.ndarray[Any, Any]) -> None:
            length = min(BLOCK, total - offset)
            assert os.pwrite(descriptor, block[:length].data, offset) == length

        _spread(total, blocks, write)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _read_raw_file(path: Path, blocks: Sequence[np.ndarray[Any, Any]]) -> None:
    descriptor = _open(path, os.O_RDONLY)
    try:
        _spread(
            os.fstat(descriptor).st_size,
            blocks,
            lambda offset, block: os.preadv(descriptor, [block.data], offset),
            READ,
        )
    finally:
        os.close(descriptor)


def _spread(
    total: int,
    blocks: Sequence[np.ndarray[Any, Any]],
    work: Callable[[int, np.ndarray[Any, Any]], object],
    size: int = BLOCK,
) -> None:
    """Calls `work` for each offset of a block, from as many threads as there are blocks of memory."""
    offsets = iter(range(0, total, size))
    lock = threading.Lock()

    def run(block: np.ndarray[Any, Any]) -> None:
        while True:
            with lock:
                offset = next(offsets, None)
            if offset is None:
                return
            work(offset, block)

    threads = [threading.Thread(target=run, args=(block,)) for block in blocks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def raw_write(nbytes: int) -> Contender:
    """So many bytes to a new file, durable."""

    @contextmanager
    def start(folder: Path) -> Iterator[Callable[[], Any]]:
        blocks = [_block() for _ in range(THREADS)]
        yield lambda: write_raw_file(folder / "raw", nbytes, blocks)

    return Contender(RAW_WRITE, start)


def raw_read(folder: Path, nbytes: int) -> Contender:
    """A file of so many bytes that lies in `folder`, read into memory that is reused."""

    @contextmanager
    def start(folder: Path) -> Iterator[Callable[[], Any]]:
        blocks = [_block() for _ in range(THREADS)]
        path = folder / "raw"
        if not path.exists():
            write_raw_file(path, nbytes, blocks)
        blocks = [block[:READ] for block in blocks]
        yield lambda: _read_raw_file(path, blocks)

    folder.mkdir(parents=True, exist_ok=True)
    return Contender(RAW_READ, start, keep=folder)


def memcpy(sources: Sequence[np.ndarray[Any, Any]]) -> Contender:
    """One copy of these bytes, by one thread, to memory that is there."""
    targets = [np.ones_like(source) for source in sources]

    @contextmanager
    def start(folder: Path) -> Iterator[Callable[[], Any]]:
        def run() -> None:
            for target, source in zip(targets, sources, strict=True):
                np.copyto(target, source)

        yield run

    return Contender("one memcpy", start)


def sha256(sources: Sequence[np.ndarray[Any, Any]]) -> Contender:
    """The SHA-256 of these bytes, on one core."""

    @contextmanager
    def start(folder: Path) -> Iterator[Callable[[], Any]]:
        def run() -> None:
            digest = hashlib.sha256()
            for source in sources:
                digest.update(source.data)

        yield run

    return Contender("SHA-256, one core", start)
