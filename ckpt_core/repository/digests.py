"""Digests of many chunks on a few threads, and what new ones are compressed to, in the order of the chunks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Container, Generator, Iterable
from concurrent.futures import Future
from queue import SimpleQueue

from ckpt_core.config import cores
from ckpt_core.format.compression import Compressed, compress
from ckpt_core.format.hashing import digest_of
from ckpt_core.format.pack import Piece
from ckpt_core.tree import dtypes

__all__ = ["compressed", "digest_in_order"]

_INLINE = 256 << 10  # below this, handing a chunk to a thread costs more than hashing it
_MOST = 8


_Digested = tuple[str, Compressed | None]


def compressed(piece: Piece) -> Compressed | None:
    """What a piece becomes; None where it stays as it is. Raises MissingExtraError."""
    return compress(piece.data, dtypes.alignment(piece.spec.dtype))


def digest_in_order(
    pieces: Iterable[Piece],
    algorithm: str = "sha256",
    threads: int | None = None,
    *,
    compress_new: Container[str] | None = None,
) -> Generator[tuple[Piece, str, Compressed | None], None, None]:
    """Each piece with its digest and, if digests that need no compressing are given, with what it is
    compressed to. While the caller writes one, the next few are being worked on, by as many `threads` as there
    are cores if it is left out.

    Whoever does not exhaust it closes it, so that its threads end. Plain threads rather than an executor:
    a save must still finish while the interpreter shuts down.
    """
    threads = min(cores(), _MOST) if threads is None else threads
    ahead = 2 * threads if compress_new is None else threads + 1  # then what waits takes memory
    jobs: SimpleQueue[tuple[Piece, Future[_Digested]] | None] = SimpleQueue()
    workers: list[threading.Thread] = []
    pending: deque[tuple[Piece, Future[_Digested] | _Digested]] = deque()

    def digested(piece: Piece) -> _Digested:
        digest = digest_of(piece.data, algorithm)
        new = compress_new is not None and digest not in compress_new
        return digest, compressed(piece) if new else None

    try:
        for piece in pieces:
            result: Future[_Digested] | _Digested
            if piece.data.nbytes < _INLINE:
                result = digested(piece)
            else:
                result = Future()
                if len(workers) < threads:
                    worker = threading.Thread(
                        target=_work, args=(jobs, digested), name="ckpt-digest", daemon=True
                    )
                    workers.append(worker)
                    worker.start()
                jobs.put((piece, result))
            pending.append((piece, result))
            while len(pending) > ahead:
                yield _settled(*pending.popleft())
        while pending:
            yield _settled(*pending.popleft())
    finally:
        for _ in workers:
            jobs.put(None)
        for worker in workers:
            worker.join()


def _settled(piece: Piece, result: Future[_Digested] | _Digested) -> tuple[Piece, str, Compressed | None]:
    return piece, *(result if isinstance(result, tuple) else result.result())


def _work(
    jobs: SimpleQueue[tuple[Piece, Future[_Digested]] | None], digested: Callable[[Piece], _Digested]
) -> None:
    while (job := jobs.get()) is not None:
        piece, future = job
        try:
            future.set_result(digested(piece))
        except BaseException as error:
            future.set_exception(error)
        del job, piece, future  # what waits for the next piece holds no memory of the last
