"""Chunks, packs and manifests as one thing: opens a store, commits checkpoints, finds and reads them.

Knows nothing of SQL, hooks or policies. The order of writing is such that a crash at any instant leaves
garbage and never loss: packs first, each durable; the manifest last, and only then is there a checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ckpt_core import clock, ids
from ckpt_core.errors import (
    CkptError,
    CorruptionError,
    FormatError,
    NotFoundError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
    UsageError,
)
from ckpt_core.format.documents import AttemptRecord, Forward, Manifest, StoreDocument
from ckpt_core.format.hashing import ALGORITHMS, require
from ckpt_core.format.names import encode_name
from ckpt_core.format.numbers import number_from, number_to
from ckpt_core.format.sealed import COMPRESSED_FORMAT, FORMAT, seal, seal_digest, unseal
from ckpt_core.format.signing import SigningKey, TrustedKeys
from ckpt_core.model import Attempt, Checkpoint, Snapshot
from ckpt_core.repository import layout
from ckpt_core.repository.checking import check_manifest, check_options
from ckpt_core.repository.layout import ManifestKey
from ckpt_core.repository.leases import HeldLease, Leases
from ckpt_core.repository.reader import ChunkReader, Verify, read_forward
from ckpt_core.repository.signatures import Signatures
from ckpt_core.repository.spare import Spare
from ckpt_core.repository.standing import put_document_back
from ckpt_core.repository.trash import Trash
from ckpt_core.repository.writer import Known, Part, still_there, write_part
from ckpt_core.stores import Store

__all__ = ["CHUNK_BYTES", "Committed", "Draft", "Repository", "attempt_from", "attempt_to"]

CHUNK_BYTES = 8 << 20
_STORE_LIMIT = 1 << 20
_TRIES = 3
_log = logging.getLogger("ckpt_core.repository")


@dataclass(frozen=True, slots=True)
class Draft:
    """What is known of a checkpoint before its bytes are written."""

    experiment: str
    step: int
    attempt: Attempt
    metrics: dict[str, float]
    writer: dict[str, Any]
    parent: str | None = None
    sign: SigningKey | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """A manifest that stands in the store, under its key."""

    manifest: Manifest
    key: str
    digest: str

    @property
    def packs(self) -> list[tuple[str, int]]:
        """Name and size of every pack the checkpoint needs."""
        return [(pack.name, pack.size) for pack in self.manifest.packs]

    def checkpoint(self, tags: tuple[str, ...] = (), pinned: bool = False) -> Checkpoint:
        """The checkpoint in the words of the domain."""
        manifest = self.manifest
        return Checkpoint(
            id=manifest.id,
            experiment=manifest.experiment,
            step=manifest.step,
            created_at=clock.from_text(manifest.created_at),
            attempt=attempt_from(manifest.attempt),
            parent=manifest.parent,
            key=self.key,
            digest=self.digest,
            logical_bytes=manifest.logical_bytes,
            written_bytes=manifest.written_bytes,
            tensor_count=len(manifest.tensors),
            metrics={name: number_from(value) for name, value in manifest.metrics.items()},
            tags=tags,
            pinned=pinned,
        )


def attempt_from(record: AttemptRecord) -> Attempt:
    """The attempt that a document tells of."""
    return Attempt(record.number, record.id, record.lineage, record.resumed_from, record.resumed_step)


def attempt_to(attempt: Attempt) -> AttemptRecord:
    """The attempt as documents write it."""
    return AttemptRecord(
        number=attempt.number,
        id=attempt.id,
        lineage=attempt.lineage,
        resumed_from=attempt.resumed_from,
        resumed_step=attempt.resumed_step,
    )


class Repository:
    """One store of checkpoints. Every method may be called from any thread."""

    def __init__(self, store: Store, document: StoreDocument, spare: Spare | None = None) -> None:
        self.store = store
        self.document = document
        self.spare = spare
        self.trusted: TrustedKeys | None = None
        """Whose signature a checkpoint must bear, for those who ask; `read` does not."""
        self.forwarded: Callable[[str], Forward] | None = None
        """`read_forward` for who opens checkpoints, if it is remembered; `forward` reads what stands there now."""
        self.signatures = Signatures(store, document.store_id)
        self.leases = Leases(store)
        self.trash = Trash(store)

    def alone(self) -> Repository:
        """The same without a spare: for those who look for damage."""
        return Repository(self.store, self.document)

    @classmethod
    def open(
        cls,
        store: Store,
        *,
        create: bool = False,
        chunk_bytes: int | None = None,
        digest: str | None = None,
    ) -> Repository:
        """The repository in a store; made on the spot with `create`, with chunks of so many bytes and digests
        by that algorithm.

        Raises NotFoundError (kind `store`), FormatError for one of a newer version, CorruptionError,
        StoreError, MissingExtraError; UsageError where a store that is there was made with others.
        """
        check_options(chunk_bytes, digest)
        found = cls._document(store)
        if found is not None:
            for name, asked in (("chunk_bytes", chunk_bytes), ("digest", digest)):
                made = getattr(found, name)
                if asked is not None and asked != made:
                    raise UsageError(
                        f"{store.url} was made with {name}={made!r}, which holds for all of a store: leave "
                        f"{name}= out, or choose another folder",
                        kind="option",
                    )
            return cls(store, found)
        if not create:
            raise NotFoundError(
                f"there is no checkpoint store at {store.url}; name it with --store or CKPT_STORE",
                kind="store",
                url=store.url,
            )
        document = StoreDocument(
            store_id=ids.new_ulid(),
            chunk_bytes=chunk_bytes or CHUNK_BYTES,
            created_at=clock.to_text(clock.now()),
            digest=digest or "sha256",
        )
        with suppress(ObjectExistsError):  # another process made it at the same moment: theirs holds
            store.put_new(layout.STORE_DOCUMENT, seal(document))
        return cls.open(store)

    @staticmethod
    def _document(store: Store) -> StoreDocument | None:
        key = layout.STORE_DOCUMENT
        where = f"{store.url}/{key}"
        try:
            found = unseal(store.get(key, limit=_STORE_LIMIT), StoreDocument, where)
        except ObjectNotFoundError:
            return None
        if found.digest not in ALGORITHMS:
            raise FormatError(f"{where} asks for digests by {found.digest!a}: upgrade ckpt-core", key=key)
        require(found.digest)
        return found

    def commit(
        self,
        snapshot: Snapshot,
        draft: Draft,
        *,
        base: Manifest | None = None,
        approve: Callable[[], None] | None = None,
        compression: str | None = None,
        threads: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Committed:
        """Writes a checkpoint. When this returns it is durable; when it raises StoreError there is none.

        (An interruption from outside may also come just after the commit: then there is a whole one.) `base` is the
        manifest whose chunks are not written again. `approve` is called just before the commit and stops it by
        raising. With `compression` what is newly written is compressed where that pays. `threads` hash and compress,
        as many as there are cores if left out. `progress` is told the bytes done and in all. It is signed, if it is
        to be, before anybody can see it.

        A lease keeps prunes away from what is named. Where it was taken for over meanwhile, as this process was
        held up for long, the packs are looked for, and what is gone is written again.
        """
        names = tuple(pack.name for pack in base.packs) if base is not None else ()
        for _ in range(_TRIES):
            checkpoint = ids.new_ulid()
            with self.leases.take("save", checkpoint=checkpoint, packs=names) as lease:
                part = write_part(
                    self.store,
                    snapshot,
                    experiment=draft.experiment,
                    checkpoint=checkpoint,
                    chunk_bytes=self.document.chunk_bytes,
                    known=self._known(base),
                    algorithm=self.document.digest,
                    compression=compression,
                    threads=threads,
                    alive=lease.renew,
                    progress=progress,
                )
                try:
                    if approve is not None:
                        approve()
                    gone = [] if lease.stands() else self._gone(part)
                    if not gone:
                        committed = self._publish(checkpoint, snapshot, draft, part)
                except BaseException:
                    self._drop_own(part, draft, checkpoint)
                    raise
                if not gone:
                    gone = self._gone_since(part, lease)
                    if not gone:
                        if draft.sign is not None and not lease.stands():
                            self.signatures.add(
                                committed, draft.sign
                            )  # a prune may have taken it for nobody's
                        return committed
                    self.forget(committed.key)
            _log.warning("packs vanished during a save, which is made again: %s", ", ".join(gone))
            self._drop_own(part, draft, checkpoint)
        raise StoreError(
            "packs kept vanishing while a checkpoint was written: save again when no prune is running",
            kind="race",
        )

    def manifest_keys(
        self, experiment: str | None = None, *, trash: bool = False, quarantine: bool = False
    ) -> Iterator[ManifestKey]:
        """Keys of all checkpoints (or of all forgotten ones, or of those in quarantine) by experiment and step.

        Reads none of them.
        """
        root = layout.TRASH if trash else layout.MANIFESTS
        root = layout.quarantine_key(layout.MANIFESTS) if quarantine else root
        for folder in sorted(self.store.folders(root)) if experiment is None else [encode_name(experiment)]:
            for name in sorted(self.store.names(f"{root}/{folder}")):
                parsed = layout.parse_manifest_key(f"{root}/{folder}/{name}")
                if parsed is not None:
                    yield parsed

    def read(self, key: str) -> Committed:
        """The manifest under a key, checked. Where it is damaged, that of the spare store, if there is one.

        Raises NotFoundError, CorruptionError, FormatError, StoreError.
        """
        try:
            return self._read(self.store, key)
        except (NotFoundError, FormatError):
            raise
        except CkptError as error:
            if self.spare is None:
                raise
            return self.spare.instead(error, lambda store: self._read(store, key))

    @staticmethod
    def _read(store: Store, key: str) -> Committed:
        try:
            data = store.get(key, limit=layout.DOCUMENT_LIMIT)
        except ObjectNotFoundError:
            raise NotFoundError(f"checkpoint {key} is no longer in {store.url}", key=key) from None
        manifest = unseal(data, Manifest, f"manifest {key}", COMPRESSED_FORMAT)
        parsed = layout.parse_manifest_key(key)
        expected = (encode_name(manifest.experiment), manifest.step, manifest.id)
        if parsed is None or (parsed.folder, parsed.step, parsed.id) != expected:
            raise CorruptionError(
                f"manifest {key} is that of another checkpoint: it was moved or copied",
                kind="document",
                key=key,
            )
        check_manifest(manifest, f"manifest {key}")
        return Committed(manifest, key, seal_digest(data))

    def reader(self, manifest: Manifest, verify: Verify = "full") -> ChunkReader:
        """The tensors of a checkpoint. Nothing is read yet. Raises MissingExtraError."""
        return ChunkReader(self.store, manifest, verify, self.document.digest, self.spare, self.forwarded)

    def forget(self, key: str, *, grace: float = 0.0) -> str:
        """Moves a manifest to the trash: the checkpoint is no longer one, its packs still stand. No prune takes
        them for `grace` seconds.

        Returns the new key. Raises ObjectNotFoundError where it is gone already.
        """
        target = layout.trash_key(key)
        if grace > 0:
            self.store.info(key)
            try:
                self.trash.grant(key, grace)
            except StoreError as error:
                if error.kind != "full":  # then it is forgotten to make room
                    raise
                _log.warning("%s cannot be brought back after the next prune: the disk is full", key)
        self.store.move(key, target)
        return target

    def forward(self, pack: str) -> Forward | None:
        """Where the chunks of a rewritten pack have gone; None where it was not rewritten."""
        try:
            return read_forward(self.store, pack)
        except ObjectNotFoundError:
            return None

    def _gone(self, part: Part) -> list[str]:
        """The packs that a checkpoint names and that were deleted since they were found."""
        return [pack.name for pack in part.packs if not still_there(self.store, pack)]

    def _gone_since(self, part: Part, lease: HeldLease) -> list[str]:
        """The same for one that is published: as long as the lease stood, there are none."""
        try:
            return [] if lease.stands() else self._gone(part)
        except StoreError as error:  # the checkpoint is durable; that nobody pruned meanwhile is likely
            _log.warning("it could not be checked that nothing was pruned during a save: %s", error)
            return []

    def _publish(self, checkpoint: str, snapshot: Snapshot, draft: Draft, part: Part) -> Committed:
        manifest = Manifest(
            format=COMPRESSED_FORMAT if part.compressed else FORMAT,
            id=checkpoint,
            experiment=draft.experiment,
            step=draft.step,
            created_at=clock.to_text(clock.now()),
            attempt=attempt_to(draft.attempt),
            parent=draft.parent,
            writer=draft.writer,
            metrics={name: number_to(value) for name, value in draft.metrics.items()},
            chunk_bytes=self.document.chunk_bytes,
            logical_bytes=snapshot.nbytes,
            written_bytes=part.written_bytes,
            state=snapshot.tree,
            tensors=part.tensors,
            packs=part.packs,
        )
        key, data = layout.manifest_key(draft.experiment, draft.step, checkpoint), seal(manifest)
        committed = Committed(manifest, key, seal_digest(data))
        if draft.sign is not None:
            self.signatures.add(committed, draft.sign)
        put_document_back(self.store, self.document)
        self.store.put_new(key, data)
        return committed

    def _known(self, base: Manifest | None) -> dict[str, Known]:
        """Chunks of `base` that can be named again. Those of a rewritten pack are left to be written anew."""
        if base is None:
            return {}
        alive = [still_there(self.store, pack) for pack in base.packs]
        return {
            chunk.digest: Known(base.packs[chunk.pack], chunk.offset, shard.stored_length(number))
            for tensor in base.tensors
            for shard in tensor.shards
            for number, chunk in enumerate(shard.chunks)
            if alive[chunk.pack]
        }

    def _drop_own(self, part: Part, draft: Draft, checkpoint: str) -> None:
        """Deletes what was written for a checkpoint that is not to be. Prune will find what this leaves."""
        with suppress(StoreError):
            # An interruption that came just after the commit must not take the packs of a checkpoint away.
            key = layout.manifest_key(draft.experiment, draft.step, checkpoint)
            if self.store.exists(key):
                return
            self.signatures.drop(key)
            for pack in part.packs:
                if f"/{checkpoint}-" in pack.name:
                    self.store.delete(layout.pack_key(pack.name))
