"""SHA-256 of many chunks on a few threads, results in the order of the chunks."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from queue import SimpleQueue

from ckpt_core.format.pack import Piece
from ckpt_core.format.sealed import digest_text
from ckpt_core.model import Buffer

__all__ = ["digest_in_order", "digest_of"]

_INLINE = 256 << 10  # below this, handing a chunk to a thread costs more than hashing it
_THREADS = max(1, min(4, os.cpu_count() or 1))


def digest_of(data: Buffer) -> str:
    """The digest of a chunk as the format writes it. Lets other threads run for all but tiny ones."""
    return digest_text(hashlib.sha256(data.data).digest())


def digest_in_order(
    pieces: Iterable[Piece], threads: int = _THREADS
) -> Generator[tuple[Piece, str], None, None]:
    """Each piece with its digest. While the caller writes one, the next few are being hashed.

    Whoever does not exhaust it closes it, so that its threads end. Plain threads rather than an executor:
    a save must still finish while the interpreter shuts down.
    """
    jobs: SimpleQueue[tuple[Buffer, Future[str]] | None] = SimpleQueue()
    workers: list[threading.Thread] = []
    pending: deque[tuple[Piece, Future[str]]] = deque()
    try:
        for piece in pieces:
            future: Future[str] = Future()
            if piece.data.nbytes < _INLINE:
                future.set_result(digest_of(piece.data))
            else:
                if len(workers) < threads:
                    worker = threading.Thread(target=_work, args=(jobs,), name="ckpt-digest", daemon=True)
                    workers.append(worker)
                    worker.start()
                jobs.put((piece.data, future))
            pending.append((piece, future))
            while len(pending) > 2 * threads:
                done, result = pending.popleft()
                yield done, result.result()
        while pending:
            done, result = pending.popleft()
            yield done, result.result()
    finally:
        for _ in workers:
            jobs.put(None)
        for worker in workers:
            worker.join()


def _work(jobs: SimpleQueue[tuple[Buffer, Future[str]] | None]) -> None:
    while (job := jobs.get()) is not None:
        data, future = job
        try:
            future.set_result(digest_of(data))
        except BaseException as error:
            future.set_exception(error)
