"""Digests of many chunks on a few threads, results in the order of the chunks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from queue import SimpleQueue

from ckpt_core.config import cores
from ckpt_core.format.hashing import digest_of
from ckpt_core.format.pack import Piece
from ckpt_core.model import Buffer

__all__ = ["digest_in_order"]

_INLINE = 256 << 10  # below this, handing a chunk to a thread costs more than hashing it
_MOST = 8


def digest_in_order(
    pieces: Iterable[Piece], algorithm: str = "sha256", threads: int | None = None
) -> Generator[tuple[Piece, str], None, None]:
    """Each piece with its digest. While the caller writes one, the next few are being hashed, by as many
    `threads` as there are cores if it is left out.

    Whoever does not exhaust it closes it, so that its threads end. Plain threads rather than an executor:
    a save must still finish while the interpreter shuts down.
    """
    threads = min(cores(), _MOST) if threads is None else threads
    jobs: SimpleQueue[tuple[Buffer, Future[str]] | None] = SimpleQueue()
    workers: list[threading.Thread] = []
    pending: deque[tuple[Piece, Future[str] | str]] = deque()
    try:
        for piece in pieces:
            digest: Future[str] | str
            if piece.data.nbytes < _INLINE:
                digest = digest_of(piece.data, algorithm)
            else:
                digest = Future()
                if len(workers) < threads:
                    worker = threading.Thread(
                        target=_work, args=(jobs, algorithm), name="ckpt-digest", daemon=True
                    )
                    workers.append(worker)
                    worker.start()
                jobs.put((piece.data, digest))
            pending.append((piece, digest))
            while len(pending) > 2 * threads:
                yield _settled(*pending.popleft())
        while pending:
            yield _settled(*pending.popleft())
    finally:
        for _ in workers:
            jobs.put(None)
        for worker in workers:
            worker.join()


def _settled(piece: Piece, digest: Future[str] | str) -> tuple[Piece, str]:
    return piece, digest if isinstance(digest, str) else digest.result()


def _work(jobs: SimpleQueue[tuple[Buffer, Future[str]] | None], algorithm: str) -> None:
    while (job := jobs.get()) is not None:
        data, future = job
        try:
            future.set_result(digest_of(data, algorithm))
        except BaseException as error:
            future.set_exception(error)
