"""What a pack that cannot be healed still gives: its intact chunks move, and a forwarding leads to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from ckpt_core.errors import CkptError, NotFoundError, ObjectNotFoundError
from ckpt_core.format.compression import Compressed
from ckpt_core.format.documents import Forward, ForwardRow, Manifest
from ckpt_core.format.pack import PackWriter, Piece, StoredChunk, header_bound
from ckpt_core.format.sealed import seal
from ckpt_core.maintenance.census import packs_in
from ckpt_core.maintenance.healing import open_damaged
from ckpt_core.maintenance.rewriting import successor
from ckpt_core.maintenance.sources import Sources, tolerant
from ckpt_core.model import Buffer, TensorSpec
from ckpt_core.repository import Repository, layout
from ckpt_core.stores import ObjectReader, ObjectWriter
from ckpt_core.tree import dtypes, tensor_paths

__all__ = ["Need", "needs_of", "rescue"]


@dataclass(slots=True)
class Need:
    """A chunk that manifests expect in a pack, and the ids of the checkpoints that need it."""

    chunk: StoredChunk
    checkpoints: set[str] = field(default_factory=set)


def needs_of(repository: Repository, names: set[str]) -> dict[str, dict[int, Need]]:
    """For each of these packs, the chunks by offset that checkpoints, also those in quarantine, need of it."""
    found: dict[str, dict[int, Need]] = {name: {} for name in names}
    forwards: dict[str, dict[int, tuple[str, int]]] = {}
    ends = names | {name for name, _ in packs_in(repository)}
    for manifest in _manifests(repository):
        paths = {index: path for path, index in tensor_paths(manifest.state).items()}
        for index, tensor in enumerate(manifest.tensors):
            spec = TensorSpec(tensor.dtype, tensor.shape)
            size = dtypes.nbytes(spec)
            shard = tensor.shards[0]
            for number, chunk in enumerate(shard.chunks):
                begin = number * manifest.chunk_bytes
                name, offset = manifest.packs[chunk.pack].name, chunk.offset
                for _ in range(100):
                    if name in ends:
                        break
                    step = _forward(repository, forwards, name).get(offset)
                    if step is None:
                        break
                    name, offset = step
                if name in names:
                    plain, stored = min(manifest.chunk_bytes, size - begin), shard.stored_length(number)
                    fresh = StoredChunk(
                        path=paths.get(index, f"tensor {index}"),
                        spec=spec,
                        begin=begin,
                        offset=offset,
                        length=stored or plain,
                        digest=chunk.digest,
                        expanded=plain if stored else None,
                    )
                    found[name].setdefault(offset, Need(fresh)).checkpoints.add(manifest.id)
    return found


def rescue(sources: Sources, name: str, needs: Mapping[int, Need], *, dry_run: bool = False) -> set[int]:
    """Moves what is needed of a pack, and can be had, to where a new forwarding leads; the pack goes to quarantine.

    Returns the offsets of the chunks that are lost; with `dry_run` that is all it does. The new places are durable
    before the pack goes, and what an interruption leaves is found and used when this is done again. Raises
    StoreError.
    """
    repository, store = sources.repository, sources.repository.store
    rows: dict[int, ForwardRow] = {}
    kept: list[StoredChunk] = []
    with ExitStack() as stack:
        base = open_damaged(sources, name, stack)
        for offset, need in sorted(needs.items()):
            if _own(sources, base, need.chunk) is not None:
                kept.append(need.chunk)
                continue
            found = sources.find(name, need.chunk)
            if found is not None and found.place is not None:
                pack, chunk = found.place
                rows[offset] = ForwardRow(offset, chunk.digest, pack, chunk.offset)
            elif found is not None:
                kept.append(need.chunk)
        if dry_run:
            return set(needs) - rows.keys() - {chunk.offset for chunk in kept}
        if kept:
            rows |= {row.offset: row for row in _write(sources, name, base, kept)}
    document = None
    with suppress(CkptError):  # a damaged one is replaced
        document = repository.forward(name)
    older = {row.offset: row for row in document.rows} if document is not None else {}
    if rows:
        merged = older | rows
        forward = Forward(pack=name, rows=tuple(merged[offset] for offset in sorted(merged)))
        store.put(layout.forward_key(name), seal(forward))
    for key in (layout.pack_key(name), layout.parity_key(name)):
        with suppress(ObjectNotFoundError):
            store.move(key, layout.quarantine_key(key))
    sources.changed()
    return set(needs) - rows.keys()


def _write(
    sources: Sources, name: str, base: ObjectReader | None, chunks: Sequence[StoredChunk]
) -> list[ForwardRow]:
    """Writes chunks to a new pack; returns how they are found there from where they were."""
    repository = sources.repository
    target = successor(name)
    while repository.store.exists(layout.pack_key(target)):
        target = successor(target)
    writers: list[ObjectWriter] = []

    def create() -> ObjectWriter:
        writers.append(repository.store.create(layout.pack_key(target)))
        return writers[0]

    chunk_bytes, algorithm = repository.document.chunk_bytes, repository.document.digest
    compressed = any(chunk.expanded is not None for chunk in chunks)
    bound = header_bound({(chunk.path, chunk.spec) for chunk in chunks}, chunk_bytes, compressed=compressed)
    owner = name.rpartition("/")[2][:26]
    pack = PackWriter(create, checkpoint=owner, chunk_bytes=chunk_bytes, bound=bound, algorithm=algorithm)
    starts = {}
    try:
        for chunk in chunks:
            stored = _own(sources, base, chunk)
            if stored is None:
                found = sources.find(name, chunk)
                if found is None:  # it was there a moment ago
                    raise NotFoundError(
                        f"the chunk at {chunk.offset} of pack {name} went while it was rescued"
                    )
                stored = found.stored
            piece = Piece(chunk.path, chunk.spec, chunk.begin, chunk.content(stored, algorithm))
            as_it_is = Compressed((stored,), stored.nbytes) if chunk.expanded is not None else None
            starts[chunk.offset] = pack.append(piece, chunk.digest, as_it_is)
        written = pack.finish()
        writers[0].commit()
    finally:
        for writer in writers:
            writer.discard()
    return [
        ForwardRow(chunk.offset, chunk.digest, target, written.header_size + starts[chunk.offset])
        for chunk in chunks
    ]


def _own(sources: Sources, base: ObjectReader | None, chunk: StoredChunk) -> Buffer | None:
    """A chunk as the damaged pack has it, if it is intact."""
    if base is None:
        return None
    stored = tolerant(base.read, base.size)(chunk.offset, chunk.length)
    return stored if sources.intact(stored, chunk) else None


def _manifests(repository: Repository) -> Iterator[Manifest]:
    for quarantine in (False, True):
        for found in repository.manifest_keys(quarantine=quarantine):
            try:
                yield repository.read(found.key).manifest
            except CkptError:  # told elsewhere
                continue


def _forward(
    repository: Repository, forwards: dict[str, dict[int, tuple[str, int]]], name: str
) -> dict[int, tuple[str, int]]:
    if name not in forwards:
        forwards[name] = {}
        with suppress(CkptError):
            document = repository.forward(name)
            for row in document.rows if document is not None else ():
                forwards[name][row.offset] = (row.pack, row.new_offset)
    return forwards[name]
