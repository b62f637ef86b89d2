"""Stores around a store: one that fails at a chosen operation, one that counts what is read.

What they wrap is a real store; nothing is patched.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from ckpt_core.errors import StoreError
from ckpt_core.model import Buffer
from ckpt_core.stores import Generation, ObjectInfo, ObjectReader, ObjectWriter, Store
from ckpt_core.stores.contract import Bytes

When = Literal["before", "after"]


class WrapperStore(Store):
    """Passes everything on to `inner`, and tells `_on` of each operation before and after."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.url = inner.url

    def _on(self, operation: str, key: str, when: When) -> None:
        """Called around every operation. May raise."""

    @contextmanager
    def open(self, key: str) -> Iterator[ObjectReader]:
        self._on("open", key, "before")
        with self.inner.open(key) as reader:
            yield _Reader(self, key, reader)

    def create(self, key: str) -> ObjectWriter:
        self._on("create", key, "before")
        return _Writer(self, key, self.inner.create(key))

    def put(self, key: str, data: Bytes, *, durable: bool = True) -> None:
        self._on("put", key, "before")
        self.inner.put(key, data, durable=durable)
        self._on("put", key, "after")

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._on("list", prefix, "before")
        yield from self.inner.list(prefix)

    def names(self, folder: str) -> Iterable[str]:
        self._on("list", folder, "before")
        return self.inner.names(folder)

    def folders(self, folder: str) -> Iterable[str]:
        self._on("list", folder, "before")
        return self.inner.folders(folder)

    def generation(self, folder: str) -> Generation | None:
        self._on("generation", folder, "before")
        return self.inner.generation(folder)

    def info(self, key: str) -> ObjectInfo:
        self._on("info", key, "before")
        return self.inner.info(key)

    def move(self, key: str, target: str) -> None:
        self._on("move", key, "before")
        self.inner.move(key, target)
        self._on("move", key, "after")

    def delete(self, key: str, *, durable: bool = True) -> None:
        self._on("delete", key, "before")
        self.inner.delete(key, durable=durable)
        self._on("delete", key, "after")

    def now(self) -> float:
        return self.inner.now()

    def sweep(self, older_than: float) -> int:
        return self.inner.sweep(older_than)

    def free_bytes(self) -> int | None:
        return self.inner.free_bytes()

    def close(self) -> None:
        self.inner.close()


class _Reader(ObjectReader):
    def __init__(self, store: WrapperStore, key: str, inner: ObjectReader) -> None:
        self._store = store
        self._key = key
        self._inner = inner
        self.size = inner.size

    def read_into(self, offset: int, out: Buffer) -> int:
        self._store._on(f"read {offset} {out.nbytes}", self._key, "before")
        return self._inner.read_into(offset, out)


class _Writer(ObjectWriter):
    def __init__(self, store: WrapperStore, key: str, inner: ObjectWriter) -> None:
        self._store = store
        self._key = key
        self._inner = inner

    def write(self, offset: int, data: Bytes) -> None:
        self._store._on("write", self._key, "before")
        self._inner.write(offset, data)

    def commit(self) -> None:
        self._store._on("commit", self._key, "before")
        self._inner.commit()
        self._store._on("commit", self._key, "after")

    def discard(self) -> None:
        self._inner.discard()


class FaultyStore(WrapperStore):
    """Fails at the `at`-th operation from `arm` on: before it takes effect, or after, as when a connection
    drops and the acknowledgement is lost. It fails once, or from then on (`lasting`)."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.log: list[str] = []
        self.armed = False
        self.struck: str | None = None
        self._lock = threading.Lock()
        self.arm(0)
        self.armed = False

    def arm(self, at: int, when: When = "before", *, lasting: bool = False) -> None:
        self.log.clear()
        self.struck = None
        self._at, self._when, self._lasting = at, when, lasting
        self._count = 0
        self.armed = True

    def disarm(self) -> None:
        self.armed = False

    def _on(self, operation: str, key: str, when: When) -> None:
        with self._lock:
            if not self.armed or when != self._when:
                return
            self._count += 1
            self.log.append(f"{operation} {key}")
            if self._count != self._at and not (self._lasting and self.struck):
                return
            self.struck = self.struck or f"{when} {operation} {key}"
        raise StoreError(f"injected fault {when} {operation} {key}", kind="io", key=key)


class CountingStore(WrapperStore):
    """Remembers each read as (key, offset, length), and counts operations by name."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.reads: list[tuple[str, int, int]] = []
        self.operations: Counter[str] = Counter()

    def reset(self) -> None:
        self.reads.clear()
        self.operations.clear()

    def objects_read(self) -> set[str]:
        return {key for key, _, _ in self.reads}

    def _on(self, operation: str, key: str, when: When) -> None:
        if when == "before":
            name, *numbers = operation.split()
            self.operations[name] += 1
            if numbers:
                self.reads.append((key, int(numbers[0]), int(numbers[1])))


class ScriptedStore(WrapperStore):
    """Calls `script(operation, key, when)` around every operation: it may raise, or do something else."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.script: Callable[[str, str, When], object] | None = None

    def _on(self, operation: str, key: str, when: When) -> None:
        if self.script is not None:
            self.script(operation, key, when)

    def once(self, matches: Callable[[str, str, When], bool], act: Callable[[], object]) -> None:
        """Calls `act` around the first operation that `matches` picks: how the tests put one process's deeds
        into the midst of another's."""

        def script(operation: str, key: str, when: When) -> None:
            if matches(operation, key, when):
                self.script = None
                act()

        self.script = script

    @property
    def done(self) -> bool:
        """Whether `once` has come."""
        return self.script is None
