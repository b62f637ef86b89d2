"""Claims of processes that are at work on a store: small objects, which no prune overlooks.

A save puts a lease before it looks for the packs that it will name, and a prune looks for leases after it
has taken a pack out of circulation: whatever the order, one of the two notices the other. The same objects
keep two prunes apart: each puts its own, then looks, and whoever sees another gives up.

A lease ends when its holder deletes it. One that was left behind ends when its holder's process is certainly
gone, or when it has not been renewed for long by the clock of the store itself. It is then deleted before
anything that it named may be, so a holder that was only held up finds that it is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, final

import msgspec

from ckpt_core import clock, ids
from ckpt_core.config import actor, has_ended, process
from ckpt_core.errors import CorruptionError, FormatError, ObjectNotFoundError, StoreError
from ckpt_core.format.documents import Lease
from ckpt_core.format.sealed import seal, unseal
from ckpt_core.repository import layout
from ckpt_core.stores import ObjectInfo, Store

__all__ = ["LEASE_SECONDS", "LOCK_SECONDS", "Claims", "HeldLease", "Leases"]

LEASE_SECONDS = 1800
"""A lease that was not renewed for so long, by the store's own clock, is over."""
LOCK_SECONDS = 600
"""The same for one that keeps others from working."""

_RENEWALS = 6  # in the time that a lease lives without one
_LIMIT = 1 << 20
_log = logging.getLogger("ckpt_core.repository")
_held: dict[str, Lease] = {}  # by key: the leases that this process has not released


@dataclass(frozen=True, slots=True)
class Claims:
    """The packs that running saves may name."""

    packs: frozenset[str] = frozenset()
    checkpoints: frozenset[str] = frozenset()
    """Ids of checkpoints that are being written: packs that bear them are claimed."""
    everything: bool = False
    """Whether there is a lease that only a later version can read."""

    def __contains__(self, name: str) -> bool:
        return self.everything or name in self.packs or layout.pack_owner(name) in self.checkpoints


@final
class HeldLease:
    """A lease while it is held. For one thread at a time. One that is not `written` nobody sees, and it stands."""

    def __init__(self, store: Store, document: Lease, *, written: bool = True) -> None:
        self.id = document.id
        self._store = store
        self._document = document
        self._key = layout.lease_key(document.id)
        self._written = written
        if written:
            self._put()

    def renew(self) -> None:
        """A sign of life. Costs nothing but a look at the clock, most times. Raises StoreError."""
        if not self._written:
            return
        if clock.monotonic() - self._renewed > self._document.seconds / _RENEWALS and self.stands():
            self._put()

    def stands(self) -> bool:
        """Whether nobody can have taken this lease for over since it was put. Raises StoreError."""
        if not self._written:
            return True
        if clock.monotonic() - self._renewed > self._document.seconds / 2:
            self._lost = True
        self._lost = self._lost or not self._store.exists(self._key)
        return not self._lost

    def report(self, facts: dict[str, Any]) -> None:
        """A sign of life that says how the holder fares. Puts the lease again if it was taken away, so only for one
        that claims nothing. Raises StoreError."""
        self._document = msgspec.structs.replace(self._document, report=facts)
        _held[self._key] = self._document
        self._put()

    def release(self) -> None:
        """Gives the claim up. Never raises: what cannot be deleted is over anyway."""
        _held.pop(self._key, None)
        with suppress(StoreError):
            self._store.delete(self._key, durable=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _put(self) -> None:
        self._store.put(self._key, seal(self._document), durable=False)
        self._renewed, self._lost = clock.monotonic(), False


class Leases:
    """The leases of a store. `process` names the holder; left out, it is this process. Thread-safe."""

    def __init__(self, store: Store, process: str | None = None) -> None:
        self._store = store
        self._process = process

    def take(
        self,
        purpose: str,
        *,
        checkpoint: str | None = None,
        packs: tuple[str, ...] = (),
        lock: str = "",
        makes_room: bool = False,
    ) -> HeldLease:
        """A lease until it is released, as at the end of a `with` block. `purpose` says what for, as `save`. What
        `makes_room` goes on without one where the disk is full.

        `checkpoint` and `packs` are what no prune may delete. `lock` names what only one may do at a time:
        raises StoreError (kind `locked`) where another lease holds it.
        """
        document = Lease(
            id=ids.new_ulid(),
            purpose=purpose,
            holder=actor(),
            process=self._name,
            seconds=LOCK_SECONDS if lock else LEASE_SECONDS,
            lock=lock,
            checkpoint=checkpoint,
            packs=packs,
        )
        key = layout.lease_key(document.id)
        _held[key] = document
        try:
            try:
                lease = HeldLease(self._store, document)
            except StoreError as error:
                if not (makes_room and error.kind == "full"):
                    raise
                lease = HeldLease(self._store, document, written=False)
            if lock:
                self._refuse_second(lease, document)
        except BaseException:
            _held.pop(key, None)
            raise
        return lease

    def claims(self) -> Claims:
        """What the leases name whose holders may be at work. Changes nothing."""
        return _claims_of(lease for _, lease in self._living())

    def standing_claims(self) -> Claims:
        """The same of every lease that is there, whatever is known of its holder."""
        return _claims_of(lease for _, lease in self._all())

    def living(self) -> list[tuple[ObjectInfo, Lease]]:
        """The leases whose holders may be at work. One that only a later version can read is left out."""
        return [(info, lease) for info, lease in self._living() if lease is not None]

    def left_behind(self) -> list[str]:
        """Keys of the leases that are over, and of those that are not what was written. Changes nothing."""
        found = []
        for info in list(self._store.list(layout.LEASES)):
            try:
                if self._is_over(info, self._read(info.key)):
                    found.append(info.key)
            except ObjectNotFoundError:  # released since the listing
                continue
            except CorruptionError as error:  # as a power cut leaves it, which ended its holder, too
                _log.debug("%s", error)
                found.append(info.key)
        return found

    def end_dead(self) -> None:
        """Deletes the leases that are over: whoever held one and was only held up will notice."""
        for key in self.left_behind():
            _log.info("%s was left behind by a process that is gone", key)
            self._store.delete(key, durable=False)

    @property
    def _name(self) -> str:
        return self._process or process()

    def _refuse_second(self, lease: HeldLease, own: Lease) -> None:
        for _, other in self._living():
            if other is not None and other.lock == own.lock and other.id != own.id:
                lease.release()
                raise StoreError(
                    f"{self._store.url} is being worked on by another {other.purpose} ({other.holder}): "
                    "try again when that has ended",
                    kind="locked",
                    holder=other.holder,
                    lock=own.lock,
                )

    def _living(self) -> Iterator[tuple[ObjectInfo, Lease | None]]:
        return ((info, lease) for info, lease in self._all() if not self._is_over(info, lease))

    def _all(self) -> Iterator[tuple[ObjectInfo, Lease | None]]:
        """Every lease that is there and can be read; None for one of a later version."""
        for info in list(self._store.list(layout.LEASES)):
            with suppress(ObjectNotFoundError, CorruptionError):
                yield info, self._read(info.key)

    def _read(self, key: str) -> Lease | None:
        try:
            return _held.get(key) or unseal(self._store.get(key, limit=_LIMIT), Lease, key)
        except FormatError:
            return None

    def _is_over(self, info: ObjectInfo, lease: Lease | None) -> bool:
        if lease is not None and lease.process == self._name:
            return info.key not in _held
        if lease is not None and has_ended(lease.process):
            return True
        try:
            # Far in the future counts as well: then the clock was set back, and a holder will renew it soon.
            age = abs(self._store.now() - info.modified)
        except StoreError:  # the store can only be read
            return False
        return age > (LEASE_SECONDS if lease is None else lease.seconds)


def _claims_of(leases: Iterable[Lease | None]) -> Claims:
    packs: set[str] = set()
    checkpoints: set[str] = set()
    everything = False
    for lease in leases:
        if lease is None:
            everything = True
            continue
        packs.update(lease.packs)
        checkpoints.update([lease.checkpoint] if lease.checkpoint else [])
    return Claims(frozenset(packs), frozenset(checkpoints), everything)
