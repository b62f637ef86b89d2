"""One checkpoint of one store into another: the same checkpoint, of chunks that stand there or travel now.

Chunks that the target has are not even read. A target with other chunks or digests has its own made on the way.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace

import msgspec
import numpy as np

from ckpt_core.errors import UNREADABLE, CkptError, CorruptionError, ObjectExistsError, StoreError
from ckpt_core.format.documents import Manifest, PackRecord
from ckpt_core.format.hashing import digest_of
from ckpt_core.format.header import read_header
from ckpt_core.format.pack import PackWriter, Piece, empty_piece, header_bound, pack_order
from ckpt_core.format.sealed import COMPRESSED_FORMAT, FORMAT, seal, seal_digest
from ckpt_core.model import Buffer, TensorSpec
from ckpt_core.repository import layout
from ckpt_core.repository.digests import compressed
from ckpt_core.repository.leases import HeldLease
from ckpt_core.repository.repository import Committed, Repository
from ckpt_core.repository.writer import MAX_PACKS, Known, Part, Place, assembled, still_there
from ckpt_core.stores import ObjectWriter
from ckpt_core.tree import dtypes, tensor_paths

__all__ = ["chunks_of", "reading", "transfer"]

_TRIES = 3
_NOTHING: Buffer = np.empty(0, np.uint8)
_log = logging.getLogger("ckpt_core.repository")


def chunks_of(manifest: Manifest) -> dict[str, Known]:
    """Where the chunks of a checkpoint are, by their digests."""
    return {
        chunk.digest: Known(manifest.packs[chunk.pack], chunk.offset, shard.stored_length(number))
        for tensor in manifest.tensors
        for shard in tensor.shards
        for number, chunk in enumerate(shard.chunks)
    }


@contextmanager
def reading(source: Repository) -> Iterator[None]:
    """Turns an input/output error on one object of the source into a CorruptionError. Raises StoreError where the
    source does not answer at all: then nothing else can be copied either."""
    try:
        yield
    except StoreError as error:
        if error.kind not in UNREADABLE:
            raise
        source.store.get(layout.STORE_DOCUMENT, limit=layout.DOCUMENT_LIMIT)
        raise CorruptionError(f"it cannot be read: {error}", kind="unreadable", **error.facts) from error


def transfer(
    source: Repository,
    manifest: Manifest,
    target: Repository,
    known: dict[str, Known],
    progress: Callable[[int], object] = lambda nbytes: None,
) -> Committed:
    """Makes a checkpoint of `source` one of `target`, under its own id. Durable on return.

    `known`: chunks that stand in the target. `progress` is told the bytes of each chunk that is done. Interrupted, it
    leaves packs that the next one goes on with. Raises CorruptionError where the source is damaged or one of its packs
    cannot be read, StoreError.
    """
    key = layout.manifest_key(manifest.experiment, manifest.step, manifest.id)
    for _ in range(_TRIES):
        left, name = _left_behind(target, manifest)
        chosen = _chosen(manifest, target, {**known, **left})
        names = tuple(sorted({each.pack.name for each in chosen.values()}))
        with target.leases.take("copy", checkpoint=manifest.id, packs=names) as lease:
            alive = {each.pack.name: each.pack for each in chosen.values()}
            alive = {name: pack for name, pack in alive.items() if still_there(target.store, pack)}
            chosen = {digest: each for digest, each in chosen.items() if each.pack.name in alive}
            try:
                part = _write(source, manifest, target, name, chosen, progress, lease)
            except ObjectExistsError:  # another copy of the same was faster: what it has written is used now
                continue
            if not _gone(target, part, lease):
                committed = _publish(target, key, manifest, part)
                if not _gone(target, part, lease):
                    return committed
                target.forget(key)
        _log.warning("packs vanished during a copy, which is made again")
    raise StoreError(
        f"packs of {target.store.url} kept coming and going during a copy: copy again when no prune and no other copy "
        "is running there",
        kind="race",
    )


def _gone(target: Repository, part: Part, lease: HeldLease) -> bool:
    return not lease.stands() and not all(still_there(target.store, pack) for pack in part.packs)


def _publish(target: Repository, key: str, manifest: Manifest, part: Part) -> Committed:
    made = msgspec.structs.replace(
        manifest,
        format=COMPRESSED_FORMAT if part.compressed else FORMAT,
        chunk_bytes=target.document.chunk_bytes,
        written_bytes=part.written_bytes,
        tensors=part.tensors,
        packs=part.packs,
    )
    data = seal(made)
    try:
        target.store.put_new(key, data)
    except ObjectExistsError:  # another process was faster
        return target.read(key)
    return Committed(made, key, seal_digest(data))


def _left_behind(target: Repository, manifest: Manifest) -> tuple[dict[str, Known], str]:
    """The chunks in packs of this very checkpoint that another copy has written, and the name of its next pack: of
    one look, so that a pack which somebody else writes meanwhile is in the way of that name, and looked at."""
    found: dict[str, Known] = {}
    number = 0
    while True:
        name = layout.pack_name(manifest.experiment, manifest.id, 0, number)
        key = layout.pack_key(name)
        if not target.store.exists(key):
            return found, name
        with suppress(CkptError), target.store.open(key) as reader:  # one that is damaged is of no use
            header = read_header(reader.read, reader.size, name)
            pack = PackRecord(name, reader.size, header.header_size, header.digest)
            for chunk in header.chunks:
                stored = chunk.length if chunk.expanded is not None else 0
                found[chunk.digest] = Known(pack, chunk.offset, stored)
        number += 1


def _same_chunks(source: Repository, manifest: Manifest, target: Repository) -> bool:
    made = target.document
    return (manifest.chunk_bytes, source.document.digest) == (made.chunk_bytes, made.digest)


def _chosen(manifest: Manifest, target: Repository, known: dict[str, Known]) -> dict[str, Known]:
    """Of the chunks that are known those that it may name, since a checkpoint names only so many packs: those of
    the packs that give most."""
    weights: Counter[str] = Counter()
    for tensor in manifest.tensors:
        for shard in tensor.shards:
            for chunk in shard.chunks:
                if chunk.digest in known:
                    weights[known[chunk.digest].pack.name] += 1
    if not weights:  # other digests than theirs: any of their packs may serve
        weights.update(each.pack.name for each in known.values())
    packs = {name for name, _ in weights.most_common(MAX_PACKS - 1)}
    return {digest: each for digest, each in known.items() if each.pack.name in packs}


def _write(
    source: Repository,
    manifest: Manifest,
    target: Repository,
    name: str,
    known: dict[str, Known],
    progress: Callable[[int], object],
    lease: HeldLease,
) -> Part:
    """Writes the chunks that are not `known` into one durable pack of that name (or none at all)."""
    document = target.document
    same = _same_chunks(source, manifest, target)
    paths = {index: path for path, index in reversed(tensor_paths(manifest.state).items())}
    specs = [TensorSpec(tensor.dtype, tensor.shape) for tensor in manifest.tensors]
    places: list[list[Place]] = [[] for _ in specs]
    smaller_chunks = manifest.format == COMPRESSED_FORMAT
    with ExitStack() as stack:
        reader = stack.enter_context(closing(source.reader(manifest, "lazy")))
        objects: list[ObjectWriter] = []

        def create() -> ObjectWriter:
            objects.append(stack.enter_context(target.store.create(layout.pack_key(name))))
            return objects[0]

        bound = header_bound(
            ((paths[i], spec) for i, spec in enumerate(specs)),
            document.chunk_bytes,
            compressed=smaller_chunks,
        )
        pack = PackWriter(
            create,
            checkpoint=manifest.id,
            chunk_bytes=document.chunk_bytes,
            algorithm=document.digest,
            bound=bound,
        )
        for index in pack_order(specs):
            shard = manifest.tensors[index].shards[0]
            size = dtypes.nbytes(specs[index])
            for number, begin in enumerate(range(0, size, document.chunk_bytes)):
                lease.renew()
                end = min(begin + document.chunk_bytes, size)
                digest = shard.chunks[number].digest if same else ""
                found = known.get(digest)
                if found is None:
                    with reading(source):
                        data = reader.read_range(index, begin, end)
                    piece = Piece(paths[index], specs[index], begin, data)
                    digest = digest or digest_of(data, document.digest)
                    found = known.get(digest)
                if found is not None:
                    empty = Piece(paths[index], specs[index], begin, _NOTHING)
                    places[index].append(Place(empty, digest, *found))
                else:
                    smaller = compressed(piece) if shard.stored is not None else None
                    start = pack.append(piece, digest, smaller)
                    bytes_ = smaller.nbytes if smaller else 0
                    places[index].append(Place(replace(piece, data=_NOTHING), digest, None, start, bytes_))
                progress(end - begin)
        record = None
        if pack.data_bytes:
            for index, spec in enumerate(specs):
                if not dtypes.nbytes(spec):
                    pack.append(empty_piece(paths[index], spec), "")
            written = pack.finish()
            objects[0].commit()
            record = PackRecord(name, written.size, written.header_size, written.header_digest)
    kinds = [tensor.kind for tensor in manifest.tensors]
    return assembled(list(zip(specs, kinds, strict=True)), places, record)
