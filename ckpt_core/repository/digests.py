"""Digests of many chunks on a few threads, and what new ones are compressed to, in the order of the chunks."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Container, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from ckpt_core.config import cores
from ckpt_core.format.compression import Compressed, compress
from ckpt_core.format.hashing import Hasher, digest_of
from ckpt_core.format.pack import Piece
from ckpt_core.model import Buffer
from ckpt_core.pages import PAGE, address, pages
from ckpt_core.tree import dtypes

__all__ = ["Digested", "compressed", "digest_in_order"]

_INLINE = 256 << 10  # below this, handing a chunk to a thread costs more than hashing it
_MOST = 8
_AHEAD = 16  # chunks for each thread: while the caller waits for the disk, none of them stands still
_HOT = 512 << 10  # what a core's own cache holds: hashing it from there is a third quicker than from memory
_WORTH = 1 << 20  # below this, a store gathers what it gets
_BLOCK = 8 << 20
_SPARE = 6  # blocks beyond two for each thread: what the pack holds back, and what is being written


@dataclass(frozen=True, slots=True)
class Digested:
    """A piece, its digest, its bytes where they are best written from (its own, or a copy that lies in its pages
    as it will in the pack), and what they are compressed to, if they are."""

    piece: Piece
    digest: str
    data: Buffer
    smaller: Compressed | None = None


def compressed(piece: Piece) -> Compressed | None:
    """What a piece becomes; None where it stays as it is. Raises MissingExtraError."""
    return compress(piece.data, dtypes.alignment(piece.spec.dtype))


def _smaller(piece: Piece, digest: str, compress_new: Container[str] | None) -> Compressed | None:
    return None if compress_new is None or digest in compress_new else compressed(piece)


def digest_in_order(
    pieces: Iterable[Piece],
    algorithm: str = "sha256",
    threads: int | None = None,
    *,
    position: Callable[[], int] = lambda: 0,
    compress_new: Container[str] | None = None,
) -> Generator[Digested, None, None]:
    """Each piece with its digest and, if digests that need no compressing are given, with what it is
    compressed to. While the caller writes one, the next few are being worked on, by as many `threads` as there
    are cores if it is left out.

    `position` says how far the pack is, which tells where in its pages a piece will lie if all before it are
    written. One that lies otherwise in memory is copied while it is hashed, which costs next to nothing: the
    bytes have to come into the core's cache anyway.

    Whoever does not exhaust it closes it, so that its threads end. Plain threads rather than an executor:
    a save must still finish while the interpreter shuts down.
    """
    threads = min(cores(), _MOST) if threads is None else threads
    most = _AHEAD * threads if compress_new is None else threads + 1  # then what waits takes memory
    jobs: SimpleQueue[_Job | None] = SimpleQueue()
    workers: list[threading.Thread] = []
    pending: deque[_Job | Digested] = deque()
    ahead = 0
    blocks = _Blocks(2 * threads + _SPARE if compress_new is None else 0)

    def oldest() -> Digested:
        nonlocal ahead
        job = pending.popleft()
        ahead -= job.piece.data.nbytes
        return job if isinstance(job, Digested) else job.result.result()

    try:
        for piece in pieces:
            if piece.data.nbytes < _INLINE:
                digest = digest_of(piece.data, algorithm)
                small = Digested(piece, digest, piece.data, _smaller(piece, digest, compress_new))
                if not pending:
                    yield small
                    continue
                pending.append(small)
            else:
                job = _Job(piece, piece.data, algorithm, compress_new, Future())
                place = (position() + ahead) % PAGE
                if _WORTH <= piece.data.nbytes <= _BLOCK and place != address(piece.data) % PAGE:
                    while (copy := blocks.take(place, piece.data.nbytes)) is None and len(pending) > threads:
                        yield oldest()
                    job.data = piece.data if copy is None else copy
                if len(workers) < threads:
                    workers.append(_worker(jobs))
                jobs.put(job)
                pending.append(job)
            ahead += piece.data.nbytes
            while len(pending) > most:
                yield oldest()
        while pending:
            yield oldest()
    finally:
        for _ in workers:
            jobs.put(None)
        for worker in workers:
            worker.join()


@dataclass(slots=True)
class _Job:
    """A piece to be hashed, and to be copied to `data` where that is not its own."""

    piece: Piece
    data: Buffer
    algorithm: str
    compress_new: Container[str] | None
    result: Future[Digested]

    def run(self, hot: Buffer) -> None:
        """Has the result, or what went wrong. `hot` is memory that comes and stays in the core's cache."""
        try:
            digest = self._hash(hot)
            smaller = _smaller(self.piece, digest, self.compress_new)
            self.result.set_result(Digested(self.piece, digest, self.data, smaller))
        except BaseException as error:
            self.result.set_exception(error)

    def _hash(self, hot: Buffer) -> str:
        """What is hashed are the copied bytes, a little at a time, while they are in cache."""
        source = self.piece.data
        hasher = Hasher(self.algorithm)
        for begin in range(0, source.nbytes, _HOT):
            part = source[begin : begin + _HOT]
            copy = hot[: part.nbytes] if self.data is source else self.data[begin : begin + _HOT]
            np.copyto(copy, part)
            hasher.update(copy)
        return hasher.digest()


class _Blocks:
    """A bounded number of blocks, each free again when nobody holds on to what was taken from it."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._free: deque[Buffer] = deque()  # appended to by whichever thread lets go last

    def take(self, place: int, nbytes: int) -> Buffer | None:
        """Memory that begins `place` bytes behind a page's beginning; None where all blocks are in use."""
        try:
            block = self._free.pop()
        except IndexError:
            if not self._left:
                return None
            self._left -= 1
            block = pages(_BLOCK + PAGE)
        lent = np.frombuffer(block.data, np.uint8)
        weakref.finalize(lent, self._free.append, block).atexit = False
        return lent[place : place + nbytes]


def _worker(jobs: SimpleQueue[_Job | None]) -> threading.Thread:
    worker = threading.Thread(target=_work, args=(jobs,), name="ckpt-digest", daemon=True)
    worker.start()
    return worker


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    hot = np.empty(_HOT, np.uint8)
    while (job := jobs.get()) is not None:
        job.run(hot)
        del job  # what waits for the next piece holds no memory of the last
