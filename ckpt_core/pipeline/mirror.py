"""The mirror of a store while a process works on the store: kept up, caught up after an outage, read in need.

A mirror that is out of reach never fails a save, a load or a deletion. It is said once, and made up for.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from ckpt_core import clock
from ckpt_core.errors import CkptError, NotFoundError, StoreError, UsageError
from ckpt_core.format.documents import MirrorDocument
from ckpt_core.format.sealed import seal, unseal
from ckpt_core.maintenance.mirroring import (
    MirrorStatus,
    Synced,
    adopt,
    compare,
    copy_document,
    copy_pack,
    copy_sidecar,
    forget_there,
    note_forgotten,
    restore_documents,
    sync,
)
from ckpt_core.repository import Committed, Repository, Spare, layout
from ckpt_core.stores import Store, open_store

__all__ = ["Mirror", "mirror_of", "remembered"]

_log = logging.getLogger("ckpt_core.mirror")
_QUIET = 30.0
"""Seconds for which a mirror that took long to refuse is not asked again: saves must not wait."""
_SLOW = 1.0
_LIMIT = 1 << 16
_RECLAIM_EVERY = 16
"""Checkpoints that are gone for good in the store, before what they held on the mirror is freed: that reads every
manifest there."""

T = TypeVar("T")


def remembered(store: Store) -> str | None:
    """Where the mirror of a store is, as the store itself says; None where it has none."""
    key = layout.MIRROR_DOCUMENT
    try:
        return unseal(store.get(key, limit=_LIMIT), MirrorDocument, key).url
    except FileNotFoundError:
        return None
    except CkptError as error:
        _log.error(
            "where the mirror is cannot be read, so there is none for now: %s; `ckpt repair` heals it", error
        )
        return None


def mirror_of(store: Store, place: str | os.PathLike[str] | Store, *, create: bool) -> Store:
    """The store at the place of a mirror. Where `store` is new and its mirror is not, and `create` allows it, the
    store begins as what the mirror says. Raises UsageError."""
    second = open_store(place)
    if second.url == store.url and (second is store or not second.url.endswith("://")):
        raise UsageError(f"{second.url} cannot be its own mirror: choose another place", kind="mirror")
    if create:
        try:
            _bring_back(store, second)
        except StoreError as error:
            _log.error("the mirror %s is out of reach: %s", second.url, error)
    return second


def _bring_back(store: Store, mirror: Store) -> bool:
    """Begins a new store as what its mirror is the mirror of; False where there is nothing to bring back.

    Its checkpoints are then there, and their data is read from the mirror until a repair copies it.
    """
    if store.exists(layout.STORE_DOCUMENT) or not mirror.exists(layout.STORE_DOCUMENT):
        return False
    there = Repository.open(mirror)
    store.put_new(layout.STORE_DOCUMENT, mirror.get(layout.STORE_DOCUMENT))
    count = restore_documents(there, Repository.open(store))
    _log.warning(
        "the store %s was new, and is what its mirror %s says: %d checkpoints, whose data is read from there "
        "until `ckpt repair` copies it",
        store.url, mirror.url, count,
    )  # fmt: skip
    return True


class Mirror:
    """The mirror of one store. Thread-safe.

    `place` is a store, or the URL of one, at which then there must be a mirror already.
    """

    def __init__(self, repository: Repository, place: str | Store) -> None:
        self.url = place.url if isinstance(place, Store) else place
        self._repository = repository
        self._place = place
        self._lock = threading.RLock()
        self._opening = threading.Lock()
        self._there: Repository | None = None
        self._known: set[str] = set()  # packs that stand there
        self._waiting: set[str] = set()  # keys of small documents that are to be copied
        self._compared = False  # whether this process knows what stands there
        self._behind = False
        self._purged = 0
        self._away = False
        self._quiet_until = 0.0
        self.spare = Spare(self._store)

    # -- kept up ---------------------------------------------------------------------------------

    def remember(self) -> None:
        """Has the store itself say where its mirror is. Raises UsageError for a place of another store."""
        with self._lock:
            self._ask(lambda there: True, strict=True)
            if remembered(self._repository.store) != self.url:
                document = MirrorDocument(url=self.url, created_at=clock.to_text(clock.now()))
                self._repository.store.put(layout.MIRROR_DOCUMENT, seal(document))

    def note(self, key: str) -> None:
        """A small document was written: it is copied with the next checkpoint."""
        with self._lock:
            self._waiting.add(key)

    def follow(self, committed: Committed) -> None:
        """Copies a checkpoint that was just committed, and what else is new. Raises CorruptionError where what is
        to be copied is damaged."""
        with self._lock:
            if self._behind or not self._compared:
                self.catch_up()
            else:
                self._ask(lambda there: self._copy(there, committed))

    def catch_up(self) -> Synced | None:
        """Brings the mirror in line, whatever it missed; None while it is out of reach."""
        with self._lock:
            waiting, self._waiting = self._waiting, set()
            synced = self._ask(lambda there: sync(self._repository, there))
            if synced is None:
                self._waiting |= waiting
                return None
            self._compared, self._behind, self._purged = True, False, 0
            if synced.packs or synced.checkpoints or synced.forgotten:
                _log.info(
                    "the mirror %s caught up: %d packs, %d checkpoints, %d forgotten",
                    self.url, synced.packs, synced.checkpoints, synced.forgotten,
                )  # fmt: skip
            return synced

    def removed(self, keys: Sequence[str]) -> None:
        """Checkpoints were forgotten, or tags and pins removed: so they are there, now or when it is back."""
        if not keys:
            return
        with self._lock:
            if self._ask(lambda there: forget_there(there, keys)) is None:
                note_forgotten(self._repository, keys)
                self._behind = True

    def settle(self, trashed: Iterable[str]) -> None:
        """Forgotten manifests are about to go for good, and with them what says that they were forgotten."""
        live = [f"{layout.MANIFESTS}{key.removeprefix(layout.TRASH)}" for key in trashed]
        with self._lock:
            self.removed([key for key in live if not self._repository.store.exists(key)])
            self._purged += len(live)
            self._behind = self._behind or self._purged >= _RECLAIM_EVERY

    def close(self) -> None:
        """Makes up for what is left, if there is anything, and lets go of the mirror."""
        with self._lock:
            try:
                if self._there is not None and (self._behind or self._purged):
                    self.catch_up()
                elif self._waiting:
                    self._ask(self._copy_waiting)
            except CkptError as error:
                _log.error("the mirror %s is not in line: %s", self.url, error)
            if self._there is not None:
                self._there.store.close()
                self._there = None

    # -- asked -----------------------------------------------------------------------------------

    def open(self) -> Repository:
        """The repository there. Raises UsageError where it is that of another store, StoreError where it is out
        of reach."""
        with self._opening:
            if self._there is None:
                begins = isinstance(self._place, Store)  # one that is only remembered may have been lost
                self._there = adopt(self._repository, open_store(self._place), create=begins)
            return self._there

    def sync(self, *, delete: bool = False, progress: Callable[[int, int], None] | None = None) -> Synced:
        """Brings it in line now; `delete` also forgets there what stands there alone. Raises as `open`."""
        there = self.open()
        with self._lock:
            synced = sync(self._repository, there, delete=delete, progress=progress)
            self._compared, self._behind, self._purged = True, False, 0
            self._waiting.clear()
            return synced

    def forget(self) -> None:
        """Has the store not remember it any more."""
        self._repository.store.delete(layout.MIRROR_DOCUMENT)

    def status(self) -> MirrorStatus:
        """How far it is behind. Raises as `open`."""
        return compare(self._repository, self.open())

    def _store(self) -> Store | None:
        found = self._ask(lambda there: there.store)
        return found if isinstance(found, Store) else None

    def _copy(self, there: Repository, committed: Committed) -> bool:
        for name, _ in committed.packs:
            if name not in self._known:
                if not there.store.exists(layout.pack_key(name)):
                    copy_pack(self._repository, there, name)
                self._copy_parity(there, name)
        self._known = {name for name, _ in committed.packs}
        self._copy_waiting(there)
        signatures = layout.signature_key(committed.key)
        if self._repository.store.exists(signatures):
            copy_document(self._repository, there, signatures)
        copy_document(self._repository, there, committed.key)
        return True

    def _copy_waiting(self, there: Repository) -> bool:
        for key in sorted(self._waiting):
            if self._repository.store.exists(key):
                copy_document(self._repository, there, key)
            self._waiting.discard(key)
        return True

    def _copy_parity(self, there: Repository, name: str) -> None:
        key = layout.parity_key(name)
        if self._repository.store.exists(key) and not there.store.exists(key):
            copy_sidecar(self._repository, there, name)

    def _ask(self, work: Callable[[Repository], T], *, strict: bool = False) -> T | None:
        """What `work` returns; None while the mirror is out of reach, which is said once."""
        begun = clock.monotonic()
        if begun < self._quiet_until:
            return None
        try:
            there = self.open()
        except CkptError as error:
            if strict and isinstance(error, UsageError):
                raise
            self._lose(error, begun)
            return None
        try:
            result = work(there)
        except (StoreError, NotFoundError) as error:
            self._lose(error, begun)
            return None
        if self._away:
            _log.warning("the mirror %s is back", self.url)
            self._away = False
        return result

    def _lose(self, error: CkptError, begun: float) -> None:
        if clock.monotonic() - begun > _SLOW:
            self._quiet_until = clock.monotonic() + _QUIET
        self._behind = True
        if not self._away:
            _log.error("the mirror %s is out of reach and is caught up later: %s", self.url, error)
        self._away = True
