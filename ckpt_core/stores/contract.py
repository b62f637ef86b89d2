"""What a store promises: named objects of bytes, written whole or not at all. No knowledge of checkpoints.

Keys are `/`-separated relative names made by this engine (`packs/digits/01J….safetensors`). A store
checks them, translates its own exceptions to StoreError, and never returns half-written objects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from ckpt_core.errors import UsageError
from ckpt_core.model import Buffer

__all__ = ["Bytes", "ObjectInfo", "ObjectReader", "ObjectWriter", "Store", "check_key"]

Bytes = bytes | bytearray | memoryview | Buffer


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object of a listing. `modified` is in seconds by the store's own clock, never ours."""

    key: str
    size: int
    modified: float


class ObjectReader(ABC):
    """An open object, for reads at any offset from several threads at once."""

    size: int

    @abstractmethod
    def read_into(self, offset: int, out: Buffer) -> int:
        """Fills `out` from `offset`; returns the bytes read, fewer only at the end of the object."""

    def read(self, offset: int, length: int) -> Buffer:
        """Up to `length` bytes from `offset`, in fresh memory."""
        out = np.empty(max(min(length, self.size - offset), 0), np.uint8)
        return out[: self.read_into(offset, out)] if out.size else out


class ObjectWriter(ABC):
    """An object that is being written, and that nobody sees before `commit`.

    Used in a `with` block: leaving it without a commit discards what was written.
    """

    @abstractmethod
    def write(self, offset: int, data: Bytes) -> None:
        """Writes all of `data` at `offset`. Callers leave no holes. Raises StoreError (kind `full`, `io`)."""

    @abstractmethod
    def commit(self) -> None:
        """Makes the object durable and visible under its key. Raises ObjectExistsError, StoreError.

        When this returns, the object survives a power cut; when it raises, the key is as it was before.
        """

    @abstractmethod
    def discard(self) -> None:
        """Forgets what was written. Does nothing after a commit. Never raises."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.discard()


class Store(ABC):
    """Where bytes live. Every method may be called from any thread."""

    url: str

    @abstractmethod
    def open(self, key: str) -> AbstractContextManager[ObjectReader]:
        """An object for reading. Raises ObjectNotFoundError, StoreError. May be retried."""

    @abstractmethod
    def create(self, key: str) -> ObjectWriter:
        """A new object under a key that must be free at commit."""

    @abstractmethod
    def put(self, key: str, data: Bytes) -> None:
        """Writes a whole small object durably, replacing what the key held. May be retried."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key begins with the folder `prefix` (no trailing `/`), in order of keys.

        A prefix that nothing has gives nothing. Objects still being written are not listed.
        """

    @abstractmethod
    def info(self, key: str) -> ObjectInfo:
        """Size and age of an object. Raises ObjectNotFoundError."""

    @abstractmethod
    def move(self, key: str, target: str) -> None:
        """Renames an object, replacing what the target held. Raises ObjectNotFoundError."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Removes an object; one that is not there is no error. May be retried."""

    @abstractmethod
    def now(self) -> float:
        """The present by the clock that dates this store's objects (`ObjectInfo.modified`), in seconds."""

    @abstractmethod
    def sweep(self, older_than: float) -> int:
        """Removes what interrupted writers left behind, if older than so many seconds; returns its bytes."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Bytes that can still be written, where the store knows."""

    def put_new(self, key: str, data: Bytes) -> None:
        """Writes a whole object durably under a key that must be free. Raises ObjectExistsError."""
        with self.create(key) as writer:
            writer.write(0, data)
            writer.commit()

    def get(self, key: str, *, limit: int | None = None) -> bytes:
        """A whole object. Raises ObjectNotFoundError; StoreError where it is over `limit` bytes."""
        with self.open(key) as reader:
            if limit is not None and reader.size > limit:
                raise UsageError(f"{key} has {reader.size} bytes, more than the {limit} allowed", key=key)
            return reader.read(0, reader.size).tobytes()

    def exists(self, key: str) -> bool:
        """Whether the key holds an object."""
        try:
            self.info(key)
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:  # noqa: B027 - most stores hold nothing open
        """Releases what the store holds open."""


def check_key(key: str) -> tuple[str, ...]:
    """The parts of a key. Raises UsageError for one that could lead out of the store."""
    parts = tuple(key.split("/"))
    for part in parts:
        if part in ("", ".", "..") or "\\" in part or "\0" in part or len(part.encode()) > 255:
            raise UsageError(f"{key!r} is not a key of a store", kind="key", key=key)
    return parts
