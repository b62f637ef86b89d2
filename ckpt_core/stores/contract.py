"""What a store promises: named objects of bytes, written whole or not at all. No knowledge of checkpoints.

Keys are `/`-separated relative names made by this engine (`packs/digits/01J….safetensors`). A store
checks them, translates its own exceptions to StoreError, and never shows half-written objects. Every
method raises UsageError for what is no key, and StoreError (kinds `full`, `read-only`, `permission`,
`not-a-folder`, `not-a-file`, `link`, `io`, …) for what its docstring does not name.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from ckpt_core.errors import CorruptionError, UsageError
from ckpt_core.model import Buffer

__all__ = [
    "TEMPORARY",
    "Bytes",
    "Generation",
    "ObjectInfo",
    "ObjectReader",
    "ObjectWriter",
    "Store",
    "check_key",
    "is_key",
    "view_of",
]

Bytes = bytes | bytearray | memoryview | Buffer
"""What can be written: contiguous bytes."""

TEMPORARY = ".tmp-"
"""How the names of objects that are being written begin, where a store needs names for them. No key does."""

_PART = re.compile(r"[!-.0-\[\]-~]{1,255}")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object of a listing. `modified` is in seconds by the store's own clock, never ours."""

    key: str
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class Generation:
    """What a folder looked like at one moment."""

    word: str
    """Another one whenever an object right in the folder came, went, or was replaced since: if not at once,
    because clocks of file systems tick slowly, then from `since` plus their tick on."""
    since: float
    """When that last happened, by the store's own clock."""


class ObjectReader(ABC):
    """An open object, for reads at any offset (0 or more) from several threads at once.

    `size` is its length when it was opened. Objects do not change, so what is read belongs together;
    where one is deleted or replaced meanwhile, a reader goes on with what it opened or raises StoreError.
    """

    size: int

    @abstractmethod
    def read_into(self, offset: int, out: Buffer) -> int:
        """Fills `out` from `offset`; returns the bytes read, fewer only at the end of the object.

        Raises StoreError; then `out` holds nothing of use. May be retried.
        """

    def read(self, offset: int, length: int) -> Buffer:
        """Up to `length` bytes from `offset`, in fresh memory. Raises StoreError. May be retried.

        Takes no more memory than the object has bytes, whatever `length` claims.
        """
        out = np.empty(max(min(length, self.size - offset), 0), np.uint8)
        return out[: self.read_into(offset, out)] if out.size else out


class ObjectWriter(ABC):
    """An object that is being written, and that nobody sees before `commit`.

    Used in a `with` block: leaving it without a commit discards what was written.
    """

    @abstractmethod
    def write(self, offset: int, data: Bytes) -> None:
        """Writes all of `data` at `offset`, in any order of offsets. Callers leave no holes.

        May return before it is done: `data` must stay as it is until `commit` or `discard` has returned.
        Raises StoreError (kind `full`, `io`). After that nothing but `discard` makes sense.
        """

    @abstractmethod
    def commit(self) -> None:
        """Makes the object durable and visible under its key. Raises ObjectExistsError, StoreError.

        When this returns, the object survives a power cut. When it raises, the key is as it was before and
        the writer is to be discarded. Not to be retried: write the object again.
        """

    @abstractmethod
    def discard(self) -> None:
        """Forgets what was written. Does nothing after a commit. Never raises."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


class Store(ABC):
    """Where bytes live. Every method may be called from any thread."""

    url: str
    """Names the store for people and in messages; `open_store` takes it back where the scheme is served."""

    @abstractmethod
    def open(self, key: str) -> AbstractContextManager[ObjectReader]:
        """An object for reading. Raises ObjectNotFoundError. May be retried."""

    @abstractmethod
    def create(self, key: str) -> ObjectWriter:
        """A new object under a key that must be free at commit. Nothing of it is seen before."""

    @abstractmethod
    def put(self, key: str, data: Bytes, *, durable: bool = True) -> None:
        """Writes a whole small object durably, replacing what the key held. May be retried.

        A reader sees the old object or the new one, never none and never a mixture. One that is not `durable`
        is seen by everybody at once as well, but a power cut may take it away again or leave something
        else in its place: that is enough for what tells of processes that the power cut ends, too.
        """

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below the folder `prefix` (no trailing `/`), ordered by the parts of the keys.

        A prefix that nothing has gives nothing. Objects still being written are not listed, nor what has
        no name that a key could have. Whoever stays from beginning to end is listed, even while others
        come and go. Raises StoreError rather than leave out what cannot be looked into.
        """

    def names(self, folder: str) -> Iterable[str]:
        """The last parts of the keys of all objects right in `folder`, in no order, and perhaps names that no key
        has (a caller knows what its own look like). Much cheaper than `list`, and promises the same."""
        start = len(folder) + 1
        return [info.key[start:] for info in self.list(folder) if "/" not in info.key[start:]]

    def folders(self, folder: str) -> Iterable[str]:
        """The names of the folders right in `folder`, in no order, those that are empty perhaps too."""
        start = len(folder) + 1
        return {info.key[start:].partition("/")[0] for info in self.list(folder) if "/" in info.key[start:]}

    def generation(self, folder: str) -> Generation | None:
        """Tells whether `names(folder)` would say what it said before; None where the store cannot tell."""
        return None

    @abstractmethod
    def info(self, key: str) -> ObjectInfo:
        """Size and age of an object. Raises ObjectNotFoundError."""

    @abstractmethod
    def move(self, key: str, target: str) -> None:
        """Renames an object durably, replacing what the target held. Raises ObjectNotFoundError.

        A crash leaves it under one name or under both, never under none.
        """

    @abstractmethod
    def delete(self, key: str, *, durable: bool = True) -> None:
        """Removes an object durably; one that is not there is no error. May be retried.

        One that is not removed `durable` may be there again after a power cut.
        """

    @abstractmethod
    def now(self) -> float:
        """The present by the clock that dates this store's objects (`ObjectInfo.modified`), in seconds."""

    @abstractmethod
    def sweep(self, older_than: float) -> int:
        """Removes what interrupted writers left behind, if older than so many seconds; returns its bytes.

        A writer that is still at work is as old as its last write.
        """

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Bytes that can still be written, where the store knows. Never raises."""

    def put_new(self, key: str, data: Bytes) -> None:
        """Writes a whole object durably under a key that must be free. Raises ObjectExistsError."""
        with self.create(key) as writer:
            writer.write(0, data)
            writer.commit()

    def get(self, key: str, *, limit: int | None = None) -> bytes:
        """A whole object. Raises ObjectNotFoundError; CorruptionError (kind `size`) where it has over `limit`
        bytes, before they are read: then it is nothing that this engine wrote there. May be retried."""
        with self.open(key) as reader:
            if limit is not None and reader.size > limit:
                raise CorruptionError(
                    f"{key} in {self.url} is damaged: it has {reader.size} bytes, over the {limit} allowed",
                    kind="size",
                    key=key,
                )
            return reader.read(0, reader.size).tobytes()

    def exists(self, key: str) -> bool:
        """Whether the key holds an object. May be retried."""
        try:
            self.info(key)
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:  # noqa: B027 - most stores hold nothing open
        """Releases what the store holds open."""


def view_of(data: Bytes) -> memoryview:
    """The bytes of what can be written, one by one, without a copy."""
    return (data.data if isinstance(data, np.ndarray) else memoryview(data)).cast("B")


def is_key(key: str) -> bool:
    """Whether `key` may name an object: parts of 1 to 255 visible ASCII characters but the backslash."""
    return all(
        _PART.fullmatch(part) and part not in (".", "..") and not part.startswith(TEMPORARY)
        for part in key.split("/")
    )


def check_key(key: str) -> tuple[str, ...]:
    """The parts of a key. Raises UsageError for what is none, as all that would lead out of a store."""
    if not is_key(key):
        raise UsageError(f"{key!a} is not a key of a store", kind="key", key=key)
    return tuple(key.split("/"))
