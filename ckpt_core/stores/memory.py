"""A store in this process's memory: for tests, notebooks and previews. Gone with the process."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ckpt_core import clock
from ckpt_core.errors import ObjectExistsError, ObjectNotFoundError
from ckpt_core.model import Buffer
from ckpt_core.stores.contract import (
    Bytes,
    Generation,
    ObjectInfo,
    ObjectReader,
    ObjectWriter,
    Store,
    check_key,
    view_of,
)

__all__ = ["MemoryStore"]


class MemoryStore(Store):
    """Objects in a dict. Two stores opened with the same `memory://name` in one process are the same."""

    _named: dict[str, MemoryStore] = {}  # noqa: RUF012 - one registry a process is the point

    def __init__(self, url: str = "memory://") -> None:
        self.url = url
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, float]] = {}
        self._changes: dict[str, int] = {}  # folder -> how often an object right in it came, went, or changed

    @classmethod
    def from_url(cls, url: str) -> MemoryStore:
        """The store of that name in this process; `memory://` without a name is always a new one."""
        if url == "memory://":
            return cls()
        return cls._named.setdefault(url, cls(url))

    @contextmanager
    def open(self, key: str) -> Iterator[ObjectReader]:
        yield _MemoryReader(self._object(key)[0])

    def create(self, key: str) -> ObjectWriter:
        check_key(key)
        return _MemoryWriter(self, key)

    def put(self, key: str, data: Bytes, *, durable: bool = True) -> None:
        check_key(key)
        with self._lock:
            self._objects[key] = (bytes(data), self.now())
            self._changed(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_key(prefix)
        with self._lock:
            found = [(key, *item) for key, item in self._objects.items() if key.startswith(f"{prefix}/")]
        for key, data, modified in sorted(found, key=lambda row: row[0].split("/")):
            yield ObjectInfo(key, len(data), modified)

    def generation(self, folder: str) -> Generation | None:
        check_key(folder)
        with self._lock:
            return Generation(str(self._changes.get(folder, 0)), -math.inf)

    def info(self, key: str) -> ObjectInfo:
        data, modified = self._object(key)
        return ObjectInfo(key, len(data), modified)

    def move(self, key: str, target: str) -> None:
        check_key(target)
        with self._lock:
            item = self._object(key)
            del self._objects[key]
            self._objects[target] = item
            self._changed(key)
            self._changed(target)

    def delete(self, key: str, *, durable: bool = True) -> None:
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)
            self._changed(key)

    def now(self) -> float:
        return clock.now().timestamp()

    def sweep(self, older_than: float) -> int:
        return 0

    def free_bytes(self) -> int | None:
        return None

    def _changed(self, key: str) -> None:
        folder = key.rpartition("/")[0]
        self._changes[folder] = self._changes.get(folder, 0) + 1

    def _object(self, key: str) -> tuple[bytes, float]:
        check_key(key)
        try:
            return self._objects[key]
        except KeyError:
            raise ObjectNotFoundError(f"{self.url} has no object {key!r}", key=key) from None

    def _publish(self, key: str, data: bytes) -> None:
        with self._lock:
            if key in self._objects:
                raise ObjectExistsError(f"{self.url} already has an object {key!r}", key=key)
            self._objects[key] = (data, self.now())
            self._changed(key)


class _MemoryReader(ObjectReader):
    def __init__(self, data: bytes) -> None:
        self._data = np.frombuffer(data, np.uint8)
        self.size = len(data)

    def read_into(self, offset: int, out: Buffer) -> int:
        part = self._data[offset : offset + out.size]
        out[: part.size] = part
        return int(part.size)


class _MemoryWriter(ObjectWriter):
    def __init__(self, store: MemoryStore, key: str) -> None:
        self._store = store
        self._key = key
        self._data = bytearray()

    def write(self, offset: int, data: Bytes) -> None:
        view = view_of(data)
        end = offset + view.nbytes
        if len(self._data) < end:
            self._data.extend(bytes(end - len(self._data)))
        self._data[offset:end] = view

    def commit(self) -> None:
        self._store._publish(self._key, bytes(self._data))

    def discard(self) -> None:
        self._data = bytearray()
