"""Files past the page cache: written in whole aligned blocks, a few at a time, by threads of their own; and read.

What the system refuses it refuses at once, and then the file is written the ordinary way. Which files are
worth it is `files`' to say.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from queue import SimpleQueue
from typing import NamedTuple, Self

import numpy as np

from ckpt_core.model import Buffer
from ckpt_core.pages import address, pages

__all__ = ["ALIGN", "BlockPool", "BlockStream", "DirectReads", "go_cached", "go_direct"]

ALIGN = 4096
"""Offsets, lengths and addresses of direct writes are multiples of it: no disk wants more."""

BLOCK = 8 << 20
_BLOCKS = 4
_THREADS = 2
_STEP = 64 << 20
_WORTH = 1 << 20  # fewer bytes are sooner copied than written by a call of their own
_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)


def go_direct(fd: int) -> bool:
    """Has the file's writes go past the page cache from here on; False where its file system knows no such thing."""
    flag = getattr(os, "O_DIRECT", 0)
    if not flag:
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | flag)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        return False
    return True


def go_cached(fd: int) -> None:
    """Has the file's writes go through the page cache again."""
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)


@cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    libc = ctypes.CDLL(None)
    found = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if found is not None:
        found.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return found


def allocate(fd: int, begin: int, nbytes: int) -> bool:
    """Has the file be longer by room on the disk; False where that is not to be had. Not `os.posix_fallocate`,
    which writes a byte to every block where the file system knows no other way."""
    fallocate = _fallocate()
    return fallocate is not None and fallocate(fd, 0, begin, nbytes) == 0


class BlockPool:
    """Aligned blocks that no write is using, kept for the next file. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Buffer] = []

    def acquire(self) -> Buffer:
        """A block, whose contents are of no use."""
        with self._lock:
            if self._free:
                return self._free.pop()
        return pages(BLOCK)

    def release(self, block: Buffer) -> None:
        """Gives a block back. No more are kept than one file needs."""
        with self._lock:
            if len(self._free) < _BLOCKS:
                self._free.append(block)


class BlockStream:
    """The bytes of a file from `begin` on, in order. One thread writes; errors come with a later call.

    What lies in memory as it will lie in the file, page by page, is written from where it is; all else is
    gathered in blocks first. So whatever is given to `write` must stay as it is until `finish`. Whoever made
    it calls `finish` or `abandon`, also after an error.
    """

    def __init__(self, fd: int, begin: int, pool: BlockPool) -> None:
        assert begin % ALIGN == 0
        self.position = self._next = self._allocated = begin
        self._fd = fd
        self._pool = pool
        self._slots = threading.Semaphore(_BLOCKS)
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._error: BaseException | None = None
        self._block: Buffer | None = None
        self._filled = 0
        self._span = _Span()
        self._workers: list[threading.Thread] = []

    def write(self, data: memoryview) -> None:
        """Takes the next bytes."""
        source = np.frombuffer(data, np.uint8)
        head = -self.position % ALIGN
        alike = (address(source) - self.position) % ALIGN == 0
        self.position += source.nbytes
        if self._span.takes(source):
            self._submit_span()
            return
        self._end_span()
        if not alike or (self._filled and source.nbytes - head < _WORTH):
            self._gather(source)
            return
        self._gather(source[:head])  # what a page lacks whose beginning was gathered
        self._submit_block()
        self._span.begin_with(source[head:])
        self._submit_span()

    def finish(self) -> int:
        """Has everything written; returns where the file ends. Zeros may stand behind, up to the next ALIGN."""
        self._end_span()
        if self._block is not None and self._filled:
            length = -(-self._filled // ALIGN) * ALIGN
            self._block[self._filled : length] = 0
            self._submit(self._block[:length], self._block)
        self._end()
        if self._error is not None:
            raise self._error
        return self.position

    def abandon(self) -> None:
        """Ends the threads; what was not written yet is not. May follow `finish`."""
        self._error = self._error or InterruptedError()
        self._end()

    def _gather(self, source: Buffer) -> None:
        begin = 0
        while begin < source.nbytes:
            if self._block is None:
                self._slots.acquire()
                self._block, self._filled = self._pool.acquire(), 0
            end = min(begin + BLOCK - self._filled, source.nbytes)
            np.copyto(self._block[self._filled : self._filled + end - begin], source[begin:end])
            self._filled += end - begin
            begin = end
            if self._filled == BLOCK:
                self._submit_block()

    def _submit_block(self) -> None:
        """Has the whole pages written that were gathered so far."""
        if self._block is not None and self._filled:
            self._submit(self._block[: self._filled], self._block)
            self._block, self._filled = None, 0

    def _submit_span(self) -> None:
        while self._span.length >= BLOCK:
            self._slots.acquire()
            self._submit(self._span.cut(BLOCK), None)

    def _end_span(self) -> None:
        """The span goes on no further: its whole pages are written from where they are, the rest is gathered."""
        pages = self._span.length // ALIGN * ALIGN
        if pages:
            self._slots.acquire()
            self._submit(self._span.cut(pages), None)
        rest = self._span.cut(self._span.length)
        if rest.nbytes:
            self._gather(rest)

    def _submit(self, data: Buffer, block: Buffer | None) -> None:
        if self._error is not None:
            raise self._error
        if len(self._workers) < _THREADS:
            worker = threading.Thread(target=self._work, name="ckpt-write", daemon=True)
            self._workers.append(worker)
            worker.start()
        self._allocate(self._next + data.nbytes)
        self._jobs.put(_Job(data, self._next, block))
        self._next += data.nbytes

    def _allocate(self, end: int) -> None:
        """Has the file system find room ahead: writes that make a file longer would wait for each other."""
        while self._allocated < end:
            if not allocate(self._fd, self._allocated, _STEP):
                self._allocated = sys.maxsize  # it knows no such thing, or the disk is nearly full
                break
            self._allocated += _STEP

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._error is None:
                    view, offset = job.data.data, job.offset
                    while view.nbytes:
                        count = os.pwrite(self._fd, view, offset)
                        view, offset = view[count:], offset + count
            except BaseException as error:
                self._error = self._error or error
            if job.block is not None:
                self._pool.release(job.block)
            self._slots.release()

    def _end(self) -> None:
        workers, self._workers = self._workers, []
        for _ in workers:
            self._jobs.put(None)
        for worker in workers:
            worker.join()
        self._block, self._filled, self._span = None, 0, _Span()


class _Job(NamedTuple):
    """Bytes for an offset; the block that they are in, if it is one of the pool's."""

    data: Buffer
    offset: int
    block: Buffer | None


class _Span:
    """Bytes given one after the other that lie one behind the other in memory, from a page's beginning on."""

    def __init__(self) -> None:
        self.length = 0
        self._begin = 0
        self._given: list[Buffer] = []

    def begin_with(self, source: Buffer) -> None:
        """Takes the first bytes, which lie at the beginning of a page."""
        self._begin, self.length, self._given = address(source), source.nbytes, [source]

    def takes(self, source: Buffer) -> bool:
        """Takes the next bytes, if they lie behind those that it has."""
        if not self.length or address(source) != self._begin + self.length:
            return False
        self.length += source.nbytes
        self._given.append(source)
        return True

    def cut(self, length: int) -> Buffer:
        """Gives the first bytes away."""
        given, begin = self._given, self._begin
        self._begin += length
        self.length -= length
        if not self.length:
            self._given = []
        if not length:
            return np.empty(0, np.uint8)
        memory = (ctypes.c_uint8 * length).from_address(begin)
        memory.given = given  # type: ignore[attr-defined] # what the bytes belong to, for as long as they are used
        return np.frombuffer(memoryview(memory), np.uint8)


class DirectReads:
    """Reads of one file past the page cache, into any memory. For several threads at once; `close` it."""

    def __init__(self, fd: int, pool: BlockPool) -> None:
        self._fd = fd
        self._pool = pool

    @classmethod
    def of(cls, fd: int, pool: BlockPool) -> Self | None:
        """Of a file that is open for ordinary reads; None where its file system knows no such thing."""
        flag = getattr(os, "O_DIRECT", 0)
        try:
            return (
                cls(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | flag), pool) if flag else None
            )
        except OSError as error:
            if error.errno not in (*_REFUSALS, errno.ENOENT, errno.ELOOP, errno.EMFILE, errno.ENFILE):
                raise
            return None

    def read_into(self, offset: int, out: Buffer) -> int:
        """Fills `out` from `offset`; returns the bytes read, fewer only at the end of the file.

        Memory that begins at the same place of a page as the offset is read into as it is; other memory
        through a block.
        """
        if (address(out) - offset) % ALIGN == 0:
            head = min(-offset % ALIGN, out.nbytes)
            pages = (out.nbytes - head) // ALIGN * ALIGN
            if pages >= ALIGN << 4:
                return self._in_parts(offset, (out[:head], out[head : head + pages], out[head + pages :]))
        return self._through_block(offset, out)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    def _in_parts(self, offset: int, parts: tuple[Buffer, Buffer, Buffer]) -> int:
        done = 0
        for number, part in enumerate(parts):
            read = self._through_block if number != 1 else self._straight
            count = read(offset + done, part) if part.nbytes else 0
            done += count
            if count < part.nbytes:
                break
        return done

    def _straight(self, offset: int, out: Buffer) -> int:
        done = 0
        while done < out.nbytes:
            count = os.preadv(self._fd, [out[done:].data], offset + done)
            done += count
            if count == 0 or count % ALIGN:  # the end of the file
                break
        return done

    def _through_block(self, offset: int, out: Buffer) -> int:
        block = self._pool.acquire()
        try:
            done = 0
            while done < out.nbytes:
                begin = (offset + done) // ALIGN * ALIGN
                skip = offset + done - begin
                wanted = min(-(-(skip + out.nbytes - done) // ALIGN) * ALIGN, BLOCK)
                count = self._straight(begin, block[:wanted]) - skip
                if count <= 0:
                    break
                part = min(count, out.nbytes - done)
                np.copyto(out[done : done + part], block[skip : skip + part])
                done += part
                if count + skip < wanted:
                    break
            return done
        finally:
            self._pool.release(block)
