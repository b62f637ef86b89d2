"""Making a second store follow the first: only what is missing travels, whole and proved, manifests last.

So the mirror is a complete store at every moment, which any command reads by itself. Nothing is deleted there
because it is missing here: only what is known to have been forgotten follows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from ckpt_core import clock
from ckpt_core.errors import (
    CkptError,
    CorruptionError,
    NotFoundError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
    UsageError,
)
from ckpt_core.format.documents import MirrorNote, StoreDocument
from ckpt_core.format.pack import read_header
from ckpt_core.format.sealed import seal, unseal
from ckpt_core.maintenance.census import Census, packs_in
from ckpt_core.maintenance.chunks import check_group, groups
from ckpt_core.maintenance.deletion import execute_prune
from ckpt_core.maintenance.parity import check_sidecar, sidecars_in
from ckpt_core.maintenance.prune import plan_prune
from ckpt_core.model import Buffer
from ckpt_core.repository import Repository, layout, open_pack
from ckpt_core.stores import Store

__all__ = [
    "MirrorStatus",
    "Synced",
    "adopt",
    "alone",
    "compare",
    "copy_document",
    "copy_pack",
    "copy_sidecar",
    "forget_there",
    "note_forgotten",
    "restore_documents",
    "sync",
]

_log = logging.getLogger("ckpt_core.maintenance")
_STEP = 8 << 20
_NOTES = f"{layout.TRASH}/mirror"
_SMALL = (layout.REFERENCES, layout.METRICS, layout.SIGNATURES, layout.EXPERIMENTS)
_GROWING = (layout.METRICS, layout.SIGNATURES)  # what differs there has another size


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """How far a mirror is behind its store, by names and sizes alone."""

    url: str
    packs: tuple[tuple[str, int], ...]
    """(pack, bytes) that it lacks."""
    checkpoints: tuple[str, ...]
    """Keys of manifests that it lacks."""
    documents: tuple[str, ...]
    """Keys of tags, pins, metric segments, signatures, documents of experiments and forwardings that it lacks."""
    forgotten: tuple[str, ...]
    """Keys of manifests that were forgotten in the store, and not there yet."""
    alone: tuple[str, ...]
    """Keys of manifests that stand there alone: they are lost in the store, or it does not know that they were
    forgotten."""

    @property
    def behind(self) -> bool:
        """Whether anything is to be done there."""
        return bool(self.packs or self.checkpoints or self.documents or self.forgotten)


@dataclass(frozen=True, slots=True)
class Synced:
    """What travelled to a mirror, what was forgotten there, and what could not be copied."""

    packs: int
    bytes_copied: int
    checkpoints: int
    documents: int
    forgotten: int
    freed: int
    alone: tuple[str, ...]
    damaged: tuple[str, ...]
    """Packs, sidecars and documents that are damaged here, and were left as they are there."""


def adopt(repository: Repository, store: Store, *, create: bool) -> Repository:
    """The repository in a mirror; with `create` begun there if it is empty. Raises UsageError where another store
    is there, StoreError where it cannot be reached."""
    with suppress(ObjectExistsError):
        if create and not store.exists(layout.STORE_DOCUMENT):
            store.put_new(layout.STORE_DOCUMENT, repository.store.get(layout.STORE_DOCUMENT))
    where = f"{store.url}/{layout.STORE_DOCUMENT}"
    document = unseal(store.get(layout.STORE_DOCUMENT), StoreDocument, where)
    if document.store_id != repository.document.store_id:
        raise UsageError(
            f"{store.url} is no mirror of {repository.store.url}: it is the store {document.store_id}, not "
            f"{repository.document.store_id}; choose an empty place",
            kind="mirror",
            url=store.url,
        )
    return Repository(store, document)


def compare(repository: Repository, mirror: Repository) -> MirrorStatus:
    """What a `sync` would do. Reads documents that may have changed, and no data."""
    live = {found.key for found in repository.manifest_keys()}
    there = {found.key for found in mirror.manifest_keys()}
    packs = dict(packs_in(mirror))
    known = _forgotten(repository)
    extra = there - live
    return MirrorStatus(
        url=mirror.store.url,
        packs=tuple((name, size) for name, size in packs_in(repository) if packs.get(name) != size),
        checkpoints=tuple(sorted(live - there)),
        documents=tuple(_changed(repository, mirror)),
        forgotten=tuple(sorted(extra & known)),
        alone=tuple(sorted(extra - known - _in_quarantine(repository))),
    )


def alone(repository: Repository, mirror: Repository) -> list[str]:
    """Keys of documents that stand on the mirror, and are lost in the store: manifests last."""
    known = _forgotten(repository) | _noted(repository)
    lost = []
    for folder in _SMALL:
        here = {info.key for info in repository.store.list(folder)}
        here |= {key.removeprefix(f"{layout.QUARANTINE}/") for key in _quarantined(repository, folder)}
        lost += [info.key for info in mirror.store.list(folder) if info.key not in here | known]
    manifests = [key for key in compare(repository, mirror).alone if key not in known]
    signed = {found.key for found in repository.manifest_keys()}.union(manifests)
    unsigned = {
        key for key in lost if key.startswith(layout.SIGNATURES) and layout.signed_key(key) not in signed
    }
    return [*(key for key in lost if key not in unsigned), *manifests]


def sync(
    repository: Repository,
    mirror: Repository,
    *,
    delete: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Synced:
    """Brings a mirror in line. `delete`: also forgets there what stands there alone.

    Interrupted at any instant, it leaves a complete store there, and the next one goes on. Damage does not
    travel: it is told, and what the mirror has stays. Raises StoreError.
    """
    status = compare(repository, mirror)
    damaged: list[str] = []
    total, done, packs = sum(size for _, size in status.packs), 0, 0
    for name, size in status.packs:
        packs += _try(damaged, layout.pack_key(name), partial(copy_pack, repository, mirror, name))
        done += size
        if progress is not None:
            progress(done, total)
    theirs = set(sidecars_in(mirror))
    for name in sidecars_in(repository):
        if name not in theirs:
            _try(damaged, layout.parity_key(name), partial(copy_sidecar, repository, mirror, name))
    documents = sum(
        _try(damaged, key, partial(copy_document, repository, mirror, key)) for key in status.documents
    )
    hurt = {key.removeprefix(f"{layout.PACKS}/") for key in damaged}
    checkpoints = 0
    for key in status.checkpoints:
        checkpoints += _try(damaged, key, partial(_copy_manifest, repository, mirror, key, hurt))
    forgotten = [*status.forgotten, *(status.alone if delete else ())]
    forget_there(mirror, forgotten)
    removed = _remove_noted(repository, mirror)
    waiting = {found.key for found in repository.manifest_keys(trash=True)}
    gone = any(found.key not in waiting for found in mirror.manifest_keys(trash=True))
    freed = _reclaim(repository, mirror, waiting) if gone or removed else 0
    return Synced(
        packs=packs,
        bytes_copied=done,
        checkpoints=checkpoints,
        documents=documents,
        forgotten=len(forgotten),
        freed=freed,
        alone=() if delete else status.alone,
        damaged=tuple(damaged),
    )


# -- what travels -------------------------------------------------------------------------------------


def copy_pack(source: Repository, target: Repository, name: str) -> None:
    """Copies a pack, and proves every chunk on the way. What stands there in its place is replaced when the new
    one is whole. Raises CorruptionError, ObjectNotFoundError, StoreError."""
    key = layout.pack_key(name)
    replaces = target.store.exists(key)
    place = f"{layout.HEALING}/{key}" if replaces else key
    if replaces:
        target.store.delete(place)
    algorithm = source.document.digest
    with open_pack(source.store, name) as reader, target.store.create(place) as writer:
        header = read_header(reader.read, reader.size, name)
        writer.write(0, reader.read(0, header.header_size))
        for group in groups(header.chunks):
            begin, last = group[0].offset, group[-1]
            data = reader.read(begin, last.offset + last.length - begin)
            faults = check_group(partial(_within, data, begin), group, algorithm)
            if faults:
                raise CorruptionError(
                    f"pack {name} is damaged and was not copied: {next(iter(faults.values()))}; `ckpt repair` "
                    "heals it",
                    kind="digest",
                    key=key,
                )
            writer.write(begin, data)
        with suppress(ObjectExistsError):  # another process was faster
            writer.commit()
    if replaces:
        target.store.move(place, key)


def _within(data: Buffer, begin: int, offset: int, length: int) -> Buffer:
    """Bytes of a pack, of which `data` are those from `begin` on."""
    return data[offset - begin : offset - begin + length]


def copy_sidecar(source: Repository, target: Repository, name: str) -> None:
    """Copies the parity of a pack, if it is sound. Raises CorruptionError, StoreError."""
    key = layout.parity_key(name)
    fault = check_sidecar(source, name, read_data=True)
    if fault is not None:
        raise CorruptionError(fault, kind="parity", key=key)
    with source.store.open(key) as reader, target.store.create(key) as writer:
        for at in range(0, reader.size, _STEP):
            writer.write(at, reader.read(at, _STEP))
        with suppress(ObjectExistsError):
            writer.commit()


def copy_document(source: Repository, target: Repository, key: str) -> None:
    """Copies a sealed document that is intact. Raises CorruptionError, ObjectNotFoundError, StoreError."""
    data = source.store.get(key, limit=layout.DOCUMENT_LIMIT)
    unseal(data, dict, key, newest=1 << 30)
    target.store.put(key, data)


def restore_documents(mirror: Repository, repository: Repository) -> int:
    """Brings all documents of a mirror to a new store; returns how many checkpoints those are."""
    count = 0
    damaged: list[str] = []
    keys = [info.key for folder in _SMALL for info in mirror.store.list(folder)]
    keys += [info.key for info in mirror.store.list(layout.PACKS) if info.key.endswith(layout.FORWARD_SUFFIX)]
    for key in keys:
        _try(damaged, key, partial(copy_document, mirror, repository, key))
    for found in mirror.manifest_keys():
        count += _try(damaged, found.key, partial(copy_document, mirror, repository, found.key))
    return count


def _copy_manifest(source: Repository, target: Repository, key: str, hurt: set[str]) -> None:
    manifest = source.read(key).manifest
    for pack in manifest.packs:
        if pack.name in hurt and not target.store.exists(layout.pack_key(pack.name)):
            raise CorruptionError(f"{key} needs the damaged pack {pack.name}", kind="digest", key=key)
    copy_document(source, target, key)
    target.store.delete(layout.trash_key(key))


def _try(damaged: list[str], key: str, copy: Callable[[], None]) -> bool:
    """Copies something, if it is still there and sound."""
    try:
        copy()
    except (ObjectNotFoundError, NotFoundError):  # deleted since the listing
        return False
    except StoreError:
        raise
    except CkptError as error:
        _log.error("not copied to the mirror: %s", error)
        damaged.append(key)
        return False
    return True


def _changed(repository: Repository, mirror: Repository) -> Iterator[str]:
    """Documents that the mirror lacks or has otherwise. Metric segments and what attempts say never change, and
    signatures are only added."""
    sizes = {info.key: info.size for folder in _SMALL for info in mirror.store.list(folder)}
    sizes |= {info.key: info.size for info in mirror.store.list(layout.PACKS)}
    for folder in (*_SMALL, layout.PACKS):
        for info in repository.store.list(folder):
            if folder == layout.PACKS and not info.key.endswith(layout.FORWARD_SUFFIX):
                continue
            same = sizes.get(info.key) == info.size
            if same and folder not in _GROWING and layout.parse_attempt_key(info.key) is None:
                with suppress(ObjectNotFoundError):
                    same = mirror.store.get(info.key) == repository.store.get(info.key)
            if not same:
                yield info.key


# -- what goes ----------------------------------------------------------------------------------------


def note_forgotten(repository: Repository, keys: Iterable[str]) -> None:
    """Remembers in the store what is to go from a mirror that is out of reach."""
    for key in keys:
        note = MirrorNote(key=key, created_at=clock.to_text(clock.now()))
        repository.store.put(f"{_NOTES}/{key}", seal(note))


def forget_there(mirror: Repository, keys: Iterable[str]) -> int:
    """Forgets checkpoints on the mirror, and removes tags and pins there; returns how many. Raises StoreError.

    Any other key is passed over: it may come from the name of a file.
    """
    count = 0
    for key in keys:
        count += 1
        parsed = layout.parse_manifest_key(key)
        if parsed is not None and key.startswith(f"{layout.MANIFESTS}/"):
            with suppress(ObjectNotFoundError):
                mirror.forget(key)
        elif layout.parse_reference_key(key) or layout.parse_experiment_tag_key(key):
            mirror.store.delete(key)
    return count


def _noted(repository: Repository) -> set[str]:
    return {info.key.removeprefix(f"{_NOTES}/") for info in repository.store.list(_NOTES)}


def _forgotten(repository: Repository) -> set[str]:
    """Keys of the manifests that are known to be forgotten: by the trash, or by a note."""
    trash = {found.key for found in repository.manifest_keys(trash=True)}
    keys = {f"{layout.MANIFESTS}{key.removeprefix(layout.TRASH)}" for key in trash}
    return keys | {key for key in _noted(repository) if layout.parse_manifest_key(key) is not None}


def _in_quarantine(repository: Repository) -> set[str]:
    found = repository.manifest_keys(quarantine=True)
    return {key.key.removeprefix(f"{layout.QUARANTINE}/") for key in found}


def _quarantined(repository: Repository, folder: str) -> set[str]:
    return {info.key for info in repository.store.list(layout.quarantine_key(folder))}


def _remove_noted(repository: Repository, mirror: Repository) -> int:
    """Does what the notes say, unless what they name stands in the store again, and drops them."""
    noted = _noted(repository)
    for key in noted:
        if not repository.store.exists(key):
            forget_there(mirror, [key])
        repository.store.delete(f"{_NOTES}/{key}")
    return len(noted)


def _reclaim(repository: Repository, mirror: Repository, waiting: set[str]) -> int:
    """Frees what nothing on the mirror needs any more, nor what waits in the trash of both stores.

    Packs are rewritten in the store alone: the mirror gets the new ones, and lets the old ones go when their
    forwarding serves all that is needed of them.
    """
    freed = 0
    here = dict(packs_in(repository))
    census = Census.take(mirror, waiting)
    needs = census.needs(census.sizes)
    for name, chunks in needs.chunks.items():
        rows = census.forwards.get(name, {})
        served = {offset for offset, (pack, _) in rows.items() if pack in census.sizes}
        if name not in here and chunks and chunks.keys() <= served:
            mirror.store.delete(layout.pack_key(name))
            mirror.store.delete(layout.parity_key(name))
            freed += census.sizes[name]
    try:
        return freed + execute_prune(mirror, plan_prune(mirror, rewrite=False, keep=waiting)).freed
    except StoreError as error:
        if error.kind != "locked":
            raise
        return freed  # whoever works there frees it
