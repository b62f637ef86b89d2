"""Repair of a store: what is damaged or lost is healed from all that is left; what cannot be, is put in quarantine.

The order is such that every step leaves the store no worse than it was, and that a repair that was interrupted
is simply made again: documents first, then packs, then the checkpoints that stay hurt, then those that are whole
again. Nothing here decides what a checkpoint needs: the manifests do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ckpt_core.errors import CkptError, CorruptionError, MissingExtraError, ObjectNotFoundError
from ckpt_core.format.documents import PackRecord
from ckpt_core.maintenance.census import packs_in
from ckpt_core.maintenance.deletion import MAINTENANCE
from ckpt_core.maintenance.documents import Document, documents, fault_of, heal_document, quarantine
from ckpt_core.maintenance.healing import heal_pack
from ckpt_core.maintenance.parity import carry_over, check_sidecar, open_parity, protect
from ckpt_core.maintenance.rescuing import Need, needs_of, rescue
from ckpt_core.maintenance.sources import Source, Sources
from ckpt_core.maintenance.verify import CheckpointVerifier, Progress, VerifyReport
from ckpt_core.repository import Leases, Repository, layout

__all__ = ["Mended", "RepairReport", "discard_quarantine", "repair"]

_log = logging.getLogger("ckpt_core.maintenance")
_PERCENT = 10  # of a sidecar that no longer says its own


@dataclass(frozen=True, slots=True)
class Mended:
    """An object that was damaged or lost and is as it was again, and what that was taken from."""

    key: str
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair found and did, or (`dry_run`) would do."""

    found: VerifyReport
    mended: tuple[Mended, ...]
    quarantined: tuple[str, ...]
    """Keys of objects that could not be healed."""
    lost: tuple[str, ...]
    """Ids of the checkpoints in quarantine: they need what is lost."""
    returned: tuple[str, ...]
    """Ids of checkpoints that were in quarantine, or gone, and are whole again."""
    dry_run: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is lost."""
        return not self.lost and not self.quarantined


def repair(
    repository: Repository,
    mirror: Repository | None = None,
    *,
    restore: Iterable[str] = (),
    dry_run: bool = False,
    progress: Progress | None = None,
) -> RepairReport:
    """Reads every byte of a store and heals what is damaged: from other packs, the mirror, parity.

    `restore` are keys of documents that are lost here and stand on the mirror. With `dry_run` nothing is changed.
    Raises StoreError where the store refuses to be read or written: what was done until then stays; or (kind
    `locked`) where a prune or another repair is at work.
    """
    return _Repair(repository.alone(), mirror, dry_run).run(restore, progress)


@dataclass
class _Repair:
    repository: Repository
    mirror: Repository | None
    dry_run: bool
    mended: list[Mended] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    hurt: set[str] = field(default_factory=set)

    def run(self, restore: Iterable[str], progress: Progress | None) -> RepairReport:
        if self.dry_run:
            return self._work(restore, progress, lambda: None)
        with Leases(self.repository.store).take("repair", lock=MAINTENANCE) as lease:
            return self._work(restore, progress, lease.renew)

    def _work(
        self, restore: Iterable[str], progress: Progress | None, alive: Callable[[], object]
    ) -> RepairReport:
        def read(done: int, total: int) -> None:
            alive()
            if progress is not None:
                progress(done, total)

        store = self.repository.store
        if not self.dry_run:
            for info in list(store.list(layout.HEALING)):  # a repair was killed
                store.delete(info.key)
            self._put_back()
        restored = self._restore(restore)
        self._documents()
        found = CheckpointVerifier(self.repository).verify(progress=read)
        sources = Sources(self.repository, self.mirror, alive)
        damaged = sorted(self._damaged_packs(found))
        records = self._records(set(damaged))
        left = [name for name in damaged if not self._heal(sources, name, records.get(name))]
        sources.leaving.update(left)
        needs = needs_of(self.repository, set(left))
        for name in left:
            self._give_up(sources, name, needs[name])
        self._sidecars(set(damaged) - set(left), found)
        self._quarantine_hurt()
        returned = self._return() + restored
        waiting = {key.id for key in self.repository.manifest_keys(quarantine=True)} | self.hurt
        return RepairReport(
            found=found,
            mended=tuple(self.mended),
            quarantined=tuple(self.quarantined),
            lost=tuple(sorted(waiting - set(returned))),
            returned=tuple(sorted(returned)),
            dry_run=self.dry_run,
        )

    def _put_back(self) -> None:
        """What a prune that was killed took out of circulation stands in its place again, to be healed if it is
        damaged. What nobody needs of it the next prune takes."""
        store = self.repository.store
        for info in list(store.list(layout.WITHDRAWN)):
            key = layout.pack_key(info.key.removeprefix(f"{layout.WITHDRAWN}/"))
            if not store.exists(key):
                store.move(info.key, key)

    # -- documents -------------------------------------------------------------------------------

    def _restore(self, keys: Iterable[str]) -> list[str]:
        """Brings back documents that are lost, from the mirror. Their packs are then found missing, and follow."""
        restored = []
        for key in keys:
            if self.mirror is None or self.repository.store.exists(key):
                continue
            if not self.dry_run:
                self.repository.store.put(key, self.mirror.store.get(key, limit=layout.DOCUMENT_LIMIT))
            self.mended.append(Mended(key, ("mirror",)))
            parsed = layout.parse_manifest_key(key)
            if parsed is not None:
                restored.append(parsed.id)
        return restored

    def _documents(self) -> None:
        store = self.repository.store
        waiting = [found.key for found in self.repository.manifest_keys(quarantine=True)]
        for document in [
            *documents(self.repository),
            *(Document("manifest", key, self.repository.read) for key in waiting),
        ]:
            fault = fault_of(document)
            if fault is None:
                continue
            _log.warning("%s: %s", document.key, fault)
            if self.dry_run:
                continue
            source = heal_document(store, document, self.mirror.store if self.mirror is not None else None)
            if source is not None:
                self.mended.append(Mended(document.key, (source,)))
            elif document.kind != "store" and not document.key.startswith(f"{layout.QUARANTINE}/"):
                self.quarantined.append(quarantine(store, document.key))

    # -- packs -----------------------------------------------------------------------------------

    def _damaged_packs(self, found: VerifyReport) -> Iterator[str]:
        prefixes = (f"{layout.PACKS}/", layout.quarantine_key(f"{layout.PACKS}/"))
        keys = {problem.key for problem in found.problems}
        keys |= {info.key for info in self.repository.store.list(layout.quarantine_key(layout.PACKS))}
        for key in keys:
            for prefix in prefixes:
                if key.startswith(prefix) and key.endswith(".safetensors"):
                    yield key.removeprefix(prefix)

    def _records(self, names: set[str]) -> dict[str, PackRecord]:
        """What manifests say of packs."""
        records: dict[str, PackRecord] = {}
        for quarantined in (True, False):
            for found in self.repository.manifest_keys(quarantine=quarantined) if names else ():
                try:
                    manifest = self.repository.read(found.key).manifest
                except CkptError:
                    continue
                records |= {pack.name: pack for pack in manifest.packs if pack.name in names}
        return records

    def _heal(self, sources: Sources, name: str, record: PackRecord | None) -> bool:
        healed = heal_pack(sources, name, record, dry_run=self.dry_run)
        if healed.whole:
            self.mended.append(Mended(layout.pack_key(name), healed.sources))
        return healed.whole

    def _give_up(self, sources: Sources, name: str, needs: dict[int, Need]) -> None:
        """What is lost of a pack is lost; what is needed of the rest moves to where it is safe."""
        key = layout.pack_key(name)
        before = {pack for pack, _ in packs_in(self.repository)}
        lost = rescue(sources, name, needs, dry_run=self.dry_run)
        for target in {pack for pack, _ in packs_in(self.repository)} - before:
            carry_over(self.repository, name, target)
        for offset in lost:
            self.hurt |= needs[offset].checkpoints
        self.quarantined.append(layout.quarantine_key(key))
        _log.error("pack %s cannot be healed: %d of its chunks that are needed are lost", name, len(lost))

    def _sidecars(self, healed: set[str], found: VerifyReport) -> None:
        """Parity that is damaged is computed anew, from packs that are whole (again)."""
        for name in sorted(healed | {_pack_of(p.key) for p in found.problems if p.kind == "parity"}):
            key = layout.parity_key(name)
            try:
                if check_sidecar(self.repository, name, read_data=True) is None:
                    continue
                if not self.dry_run:
                    protect(self.repository, name, self._percent(name), replace=True)
                self.mended.append(Mended(key, ("store",)))
            except ObjectNotFoundError:  # it has no parity, or there is no pack
                continue
            except MissingExtraError as error:
                _log.error("%s stays damaged: %s", key, error)
            except CorruptionError as error:  # of the pack, which cannot be healed
                _log.error("%s stays damaged: %s", key, error)

    def _percent(self, name: str) -> int:
        try:
            with self.repository.store.open(layout.parity_key(name)) as side:
                return open_parity(side, name).document.percent
        except CkptError:
            return _PERCENT

    # -- checkpoints -----------------------------------------------------------------------------

    def _quarantine_hurt(self) -> None:
        """Takes the checkpoints that need what is lost out of the list: `latest` and `best` go past them."""
        for found in list(self.repository.manifest_keys()):
            if found.id in self.hurt:
                target = layout.quarantine_key(found.key)
                self.quarantined.append(
                    target if self.dry_run else quarantine(self.repository.store, found.key)
                )

    def _return(self) -> list[str]:
        """Puts back the checkpoints in quarantine that are whole again."""
        waiting = [
            found for found in self.repository.manifest_keys(quarantine=True) if found.id not in self.hurt
        ]
        returned = []
        for found in waiting:
            if _still_damaged(self.repository, found.key):
                continue
            if not self.dry_run:
                self.repository.store.move(found.key, found.key.removeprefix(f"{layout.QUARANTINE}/"))
            returned.append(found.id)
        return returned


def _pack_of(key: str) -> str:
    """The pack that a sidecar is of."""
    stem = key.removeprefix(f"{layout.PACKS}/").removesuffix(layout.PARITY_SUFFIX)
    return f"{stem}.safetensors"


def _still_damaged(repository: Repository, key: str) -> bool:
    """Whether a checkpoint in quarantine is still damaged: all of it is read."""
    return not CheckpointVerifier(repository).verify([key]).ok


def discard_quarantine(repository: Repository) -> int:
    """Gives up what is in quarantine: checkpoints are forgotten, the rest is deleted; returns how many objects.

    What only those checkpoints needed goes with the next prune.
    """
    store = repository.store
    count = 0
    for info in list(store.list(layout.QUARANTINE)):
        key = info.key.removeprefix(f"{layout.QUARANTINE}/")
        if key.startswith(f"{layout.MANIFESTS}/"):
            store.move(info.key, layout.trash_key(key))
        else:
            store.delete(info.key)
        count += 1
    return count
