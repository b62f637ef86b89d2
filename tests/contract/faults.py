"""A store that fails when a script says so: at the n-th thing it is asked to change, before or after doing it.

Wraps any store. Doubles are for faults only: what is not told to fail really happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

from ckpt_core.errors import StoreError
from ckpt_core.stores import ObjectInfo, ObjectReader, ObjectWriter, Store
from ckpt_core.stores.contract import Bytes

__all__ = ["FaultyStore", "PowerCut"]

T = TypeVar("T")


class PowerCut(BaseException):
    """The process is gone: from here on nothing reaches the store, no cleaning up either."""


class FaultyStore(Store):
    """Counts the changes (`create`, `write`, `commit`, `put`, `move`, `delete`) and fails at `fail_at`, counted from 1.

    `how`: `refuse` raises StoreError and does nothing; `lose` does it and then raises StoreError, as when an
    acknowledgement is lost; `die` raises PowerCut, then and at every later change; `die-after` the same, but
    the change is made. `log` has every change that was made, in order.
    """

    def __init__(self, inner: Store, *, fail_at: int = 0, how: str = "refuse") -> None:
        self.inner = inner
        self.url = inner.url
        self.fail_at = fail_at
        self.how = how
        self.count = 0
        self.log: list[str] = []

    def change(self, what: str, work: Callable[[], T]) -> T:
        self.count += 1
        dead = self.how.startswith("die") and self.fail_at and self.count > self.fail_at
        if dead:
            raise PowerCut(what)
        failing = self.count == self.fail_at
        if failing and self.how == "refuse":
            raise StoreError(f"scripted fault at {what}", kind="io")
        if failing and self.how == "die":
            raise PowerCut(what)
        done = work()
        self.log.append(what)
        if failing and self.how == "lose":
            raise StoreError(f"scripted fault after {what}", kind="io")
        if failing:
            raise PowerCut(what)
        return done

    def open(self, key: str) -> AbstractContextManager[ObjectReader]:
        return self.inner.open(key)

    def create(self, key: str) -> ObjectWriter:
        return _FaultyWriter(self, key, self.change(f"create {key}", lambda: self.inner.create(key)))

    def put(self, key: str, data: Bytes, *, durable: bool = True) -> None:
        self.change(f"put {key}", lambda: self.inner.put(key, data, durable=durable))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def info(self, key: str) -> ObjectInfo:
        return self.inner.info(key)

    def move(self, key: str, target: str) -> None:
        self.change(f"move {key} {target}", lambda: self.inner.move(key, target))

    def delete(self, key: str, *, durable: bool = True) -> None:
        self.change(f"delete {key}", lambda: self.inner.delete(key, durable=durable))

    def now(self) -> float:
        return self.inner.now()

    def sweep(self, older_than: float) -> int:
        return self.inner.sweep(older_than)

    def free_bytes(self) -> int | None:
        return self.inner.free_bytes()


class _FaultyWriter(ObjectWriter):
    def __init__(self, store: FaultyStore, key: str, inner: ObjectWriter) -> None:
        self._store = store
        self._key = key
        self._inner = inner

    def write(self, offset: int, data: Bytes) -> None:
        self._store.change(f"write {self._key}", lambda: self._inner.write(offset, data))

    def commit(self) -> None:
        self._store.change(f"commit {self._key}", self._inner.commit)

    def discard(self) -> None:
        if not (self._store.how.startswith("die") and self._store.count >= self._store.fail_at > 0):
            self._inner.discard()
