"""Healing the sealed documents of a store: manifests, tags, pins, signatures, metric segments, those of
experiments, forwardings, `store.json`.

Each is whole or not; what cannot be healed goes to quarantine, so that nothing trips over it any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from ckpt_core import clock, ids
from ckpt_core.errors import CkptError, CorruptionError, NotFoundError, ObjectNotFoundError
from ckpt_core.format.documents import MirrorDocument, StoreDocument
from ckpt_core.format.pack import read_header
from ckpt_core.format.sealed import seal, unseal
from ckpt_core.maintenance.flips import LONGEST, unflip_sealed
from ckpt_core.maintenance.sources import Source
from ckpt_core.repository import ExperimentRecords, MetricSegments, References, Repository, layout
from ckpt_core.stores import Store

__all__ = ["Document", "documents", "fault_of", "heal_document", "heal_store_document", "quarantine"]

_log = logging.getLogger("ckpt_core.maintenance")
_STORE_LIMIT = 1 << 20


class Document(NamedTuple):
    """A kind of document, the key of one, and what reads it: raises where it is damaged."""

    kind: str
    key: str
    read: Callable[[str], object]


def documents(repository: Repository, *, live: bool = True) -> Iterator[Document]:
    """Every sealed document of a store, with or without the manifests of its `live` checkpoints."""
    store = repository.store
    references, segments, experiments = References(store), MetricSegments(store), ExperimentRecords(store)

    def store_document(key: str) -> object:
        return unseal(store.get(key, limit=_STORE_LIMIT), StoreDocument, key)

    def forward(key: str) -> object:
        return repository.forward(key.removeprefix(f"{layout.PACKS}/").removesuffix(layout.FORWARD_SUFFIX))

    def mirror_document(key: str) -> object:
        return unseal(store.get(key, limit=_STORE_LIMIT), MirrorDocument, key)

    yield Document("store", layout.STORE_DOCUMENT, store_document)
    yield Document("mirror", layout.MIRROR_DOCUMENT, mirror_document)
    for key in list(references.keys()):
        yield Document("reference", key, references.read)
    for key in list(segments.keys()):
        yield Document("metrics", key, segments.read)
    for info in list(repository.signatures.infos()):
        yield Document("signatures", info.key, repository.signatures.read)
    for key in list(experiments.keys()):
        yield Document("experiment", key, experiments.read)
    for trash in (False, True) if live else (True,):
        for found in repository.manifest_keys(trash=trash):
            yield Document("manifest", found.key, repository.read)
    for info in store.list(layout.PACKS):
        if info.key.endswith(layout.FORWARD_SUFFIX):
            yield Document("forward", info.key, forward)


def fault_of(document: Document) -> CkptError | None:
    """What is wrong with a document; None where nothing is, or it is gone since the listing."""
    try:
        document.read(document.key)
    except (ObjectNotFoundError, NotFoundError):
        return None
    except CkptError as error:
        return error
    return None


def heal_document(store: Store, document: Document, mirror: Store | None) -> Source | None:
    """Puts back a damaged document as it was; returns by what it was healed, None where it could not be."""
    key = document.key
    for source, data in _candidates(store, key, mirror):
        store.put(key, data)
        if fault_of(document) is None:
            return source
    references = References(store)
    if document.kind == "reference":
        for found, reference in references.all():
            if found == key and reference.kind == "pins":  # its key says all that it says
                references.pin(reference.experiment, reference.checkpoint)
                return "manifest" if fault_of(document) is None else None
    return None


def heal_store_document(store: Store, mirror: Store | None) -> Source | None:
    """Puts back a damaged or lost `store.json`; None where it is intact, or there is no store.

    The last resort is a new one, with what the packs say of themselves: only the store's id is then another.
    Raises CorruptionError where not even that can be had.
    """
    key = layout.STORE_DOCUMENT
    document = Document(
        "store", key, lambda key: unseal(store.get(key, limit=_STORE_LIMIT), StoreDocument, key)
    )
    lost = not store.exists(key)
    if not lost and fault_of(document) is None:
        return None
    for source, data in _candidates(store, key, mirror):
        store.put(key, data)
        if fault_of(document) is None:
            return source
    for info in store.list(layout.PACKS):
        if not info.key.endswith(".safetensors"):
            continue
        with suppress(CkptError), store.open(info.key) as reader:
            facts = read_header(reader.read, reader.size, info.key)
            rebuilt = StoreDocument(
                store_id=ids.new_ulid(),
                chunk_bytes=facts.chunk_bytes,
                created_at=clock.to_text(clock.now()),
                digest=facts.algorithm,
            )
            store.put(key, seal(rebuilt))
            return "manifest"
    if lost:
        return None
    raise CorruptionError(
        f"{key} is damaged, and neither a mirror nor a pack says what stood in it: put it back from a backup",
        kind="document",
        key=key,
    )


def quarantine(store: Store, key: str) -> str:
    """Takes a damaged object out of the way; returns its new key."""
    target = layout.quarantine_key(key)
    with suppress(ObjectNotFoundError):
        store.move(key, target)
        _log.error("%s cannot be healed for now, and is kept as %s", key, target)
    return target


def _candidates(store: Store, key: str, mirror: Store | None) -> Iterator[tuple[Source, bytes]]:
    """What may have stood under a key: each is intact by its own digest."""
    if mirror is not None:
        with suppress(CkptError):
            there = key.removeprefix(f"{layout.QUARANTINE}/")
            data = mirror.get(there, limit=layout.DOCUMENT_LIMIT)
            if unflip_sealed(data, trials=False) == data:
                yield "mirror", data
    with suppress(CkptError):
        data = store.get(key, limit=LONGEST)
        fixed = unflip_sealed(data)
        if fixed is not None and fixed != data:
            yield "bit", fixed
