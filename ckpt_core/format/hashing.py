"""How chunks are hashed: which algorithms there are, and what their digests look like on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, final, get_args

import numpy as np

from ckpt_core.errors import MissingExtraError
from ckpt_core.format.sealed import digest_text
from ckpt_core.model import Buffer

__all__ = ["ALGORITHMS", "Algorithm", "ChecksumCalculator", "Hasher", "digest_of", "require"]

Algorithm = Literal["sha256", "blake3"]
"""What digests of chunks are taken by. Both give 32 bytes. Documents and headers are always under SHA-256."""

ALGORITHMS: tuple[str, ...] = get_args(Algorithm)


def digest_of(data: Buffer, algorithm: str = "sha256") -> str:
    """The digest of a chunk as the format writes it. Lets other threads run for all but tiny ones.

    Raises MissingExtraError.
    """
    made = hashlib.sha256(data.data) if algorithm == "sha256" else _blake3()(data.data)
    return digest_text(made.digest())


class Hasher:
    """The digest of bytes that come piece by piece. Raises MissingExtraError."""

    __slots__ = ("_hash",)

    def __init__(self, algorithm: str = "sha256") -> None:
        self._hash = hashlib.sha256() if algorithm == "sha256" else _blake3()()

    def update(self, data: Buffer) -> None:
        """Takes the next bytes."""
        self._hash.update(data.data)

    def digest(self) -> str:
        """The digest of all that was taken, as the format writes it."""
        return digest_text(self._hash.digest())


@final
class ChecksumCalculator:
    """Digests as this engine writes them: 43 characters of base64url. Thread-safe. Raises MissingExtraError where
    the algorithm cannot be used here."""

    def __init__(self, algorithm: Algorithm = "sha256") -> None:
        require(algorithm)
        self.algorithm: Algorithm = algorithm

    def digest(self, data: Any) -> str:
        """The digest of bytes, or of whatever has a buffer of contiguous bytes, as numpy's arrays."""
        return digest_of(np.frombuffer(memoryview(data).cast("B"), np.uint8), self.algorithm)

    def digest_file(self, path: str | os.PathLike[str]) -> str:
        """The digest of a file, read a MiB at a time."""
        hasher = Hasher(self.algorithm)
        with open(path, "rb") as file:
            while part := file.read(1 << 20):
                hasher.update(np.frombuffer(part, np.uint8))
        return hasher.digest()

    def matches(self, data: Any, digest: str) -> bool:
        """Whether these are the bytes of a digest."""
        return self.digest(data) == digest


def require(algorithm: str) -> None:
    """Raises MissingExtraError where an algorithm cannot be used here."""
    if algorithm == "blake3":
        _blake3()


@cache
def _blake3() -> Callable[..., Any]:
    try:
        import blake3
    except ImportError as error:
        raise MissingExtraError(
            "the chunks of this store are hashed by BLAKE3: pip install 'ckpt-core[blake3]'", extra="blake3"
        ) from error
    return blake3.blake3
