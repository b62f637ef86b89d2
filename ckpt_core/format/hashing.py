"""How chunks are hashed: which algorithms there are, and what their digests look like on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import Literal, get_args

from ckpt_core.errors import MissingExtraError
from ckpt_core.format.sealed import digest_text
from ckpt_core.model import Buffer

__all__ = ["ALGORITHMS", "Algorithm", "digest_of", "require"]

Algorithm = Literal["sha256", "blake3"]
"""What digests of chunks are taken by. Both give 32 bytes. Documents and headers are always under SHA-256."""

ALGORITHMS: tuple[str, ...] = get_args(Algorithm)


def digest_of(data: Buffer, algorithm: str = "sha256") -> str:
    """The digest of a chunk as the format writes it. Lets other threads run for all but tiny ones.

    Raises MissingExtraError.
    """
    if algorithm == "sha256":
        return digest_text(hashlib.sha256(data.data).digest())
    return digest_text(_blake3()(data.data))


def require(algorithm: str) -> None:
    """Raises MissingExtraError where an algorithm cannot be used here."""
    if algorithm == "blake3":
        _blake3()


@cache
def _blake3() -> Callable[[memoryview], bytes]:
    try:
        import blake3
    except ImportError as error:
        raise MissingExtraError(
            "the chunks of this store are hashed by BLAKE3: pip install 'ckpt-core[blake3]'", extra="blake3"
        ) from error
    return lambda data: bytes(blake3.blake3(data).digest())
