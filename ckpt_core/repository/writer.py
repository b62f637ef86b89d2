"""From a snapshot to a pack: cut into chunks, hash, leave out what the parent has, write the rest, compressed
where that is asked for and pays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import NamedTuple

from ckpt_core.errors import ObjectNotFoundError
from ckpt_core.format.documents import Chunk, PackRecord, Shard, TensorRecord
from ckpt_core.format.pack import PackWriter, Piece, empty_piece, header_bound, pack_order
from ckpt_core.model import Buffer, Snapshot, StagedTensor, TensorSpec
from ckpt_core.repository import layout
from ckpt_core.repository.digests import compressed, digest_in_order
from ckpt_core.stores import ObjectWriter, Store

__all__ = ["MAX_PACKS", "Known", "KnownChunks", "Part", "Place", "assembled", "still_there", "write_part"]

MAX_PACKS = 64
"""Packs that one checkpoint may name: what bounds the files a reader must open."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one process contributes to a manifest: its tensors, the packs they need, the bytes it wrote."""

    tensors: tuple[TensorRecord, ...]
    packs: tuple[PackRecord, ...]
    written_bytes: int

    @property
    def compressed(self) -> bool:
        """Whether it names chunks that are compressed, be they new or the parent's."""
        return any(shard.stored is not None for tensor in self.tensors for shard in tensor.shards)


class Known(NamedTuple):
    """Where a chunk is: a pack, the offset from its beginning, the bytes it takes there if it is compressed."""

    pack: PackRecord
    offset: int
    stored: int = 0


KnownChunks = Mapping[str, Known]
"""Chunks that need not be written again, by their digests."""


@dataclass(slots=True)
class Place:
    """Where a chunk is: in the pack being written (`pack` None, `offset` behind its header), or elsewhere."""

    piece: Piece
    digest: str
    pack: PackRecord | None
    offset: int
    stored: int


def write_part(
    store: Store,
    snapshot: Snapshot,
    *,
    experiment: str,
    checkpoint: str,
    chunk_bytes: int,
    known: KnownChunks,
    rank: int = 0,
    max_packs: int = MAX_PACKS,
    algorithm: str = "sha256",
    compression: str | None = None,
    threads: int | None = None,
    alive: Callable[[], object] = lambda: None,
    progress: Callable[[int, int], None] | None = None,
) -> Part:
    """Writes the chunks of a snapshot that are not `known` into one durable pack (or none at all).

    Hashing (and compressing) the next chunks, on `threads` threads, overlaps with writing the last. `alive`
    is called again and again meanwhile, `progress` with the bytes done and in all. Raises StoreError; StateError where
    there are more tensors than a
    pack can list. Then nothing is left behind.
    """
    name = layout.pack_name(experiment, checkpoint, rank, 0)
    order = pack_order([tensor.spec for tensor in snapshot.tensors])
    places: list[list[Place]] = [[] for _ in snapshot.tensors]
    with ExitStack() as stack:
        objects: list[ObjectWriter] = []

        def create() -> ObjectWriter:
            objects.append(stack.enter_context(store.create(layout.pack_key(name))))
            return objects[0]

        pack = PackWriter(
            create,
            checkpoint=checkpoint,
            chunk_bytes=chunk_bytes,
            algorithm=algorithm,
            bound=header_bound(
                ((t.path, t.spec) for t in snapshot.tensors), chunk_bytes, compressed=compression is not None
            ),
        )
        sources = [(i, piece) for i in order for piece in _pieces(snapshot.tensors[i], chunk_bytes)]
        digested = digest_in_order(
            (piece for _, piece in sources), algorithm, threads,
            position=lambda: pack.data_bytes, compress_new=None if compression is None else known,
        )  # fmt: skip
        stack.enter_context(closing(digested))
        done, total = 0, snapshot.nbytes
        for (i, piece), each in zip(sources, digested, strict=True):
            alive()
            done += piece.data.nbytes
            if progress is not None:
                progress(done, total)
            found = known.get(each.digest)
            if found is None:
                start = pack.append(_at(piece, each.data), each.digest, each.smaller)
                stored = each.smaller.nbytes if each.smaller else 0
                places[i].append(Place(piece, each.digest, None, start, stored))
            else:
                places[i].append(Place(piece, each.digest, *found))
            del each  # and with it a block, for the next piece
        _fold([place for row in places for place in row], pack, max_packs, compression)
        record = None
        if pack.data_bytes:
            for tensor in snapshot.tensors:
                if not tensor.data.nbytes:
                    pack.append(empty_piece(tensor.path, tensor.spec), "")
            written = pack.finish()
            objects[0].commit()
            record = PackRecord(name, written.size, written.header_size, written.header_digest)
    return assembled([(tensor.spec, tensor.kind) for tensor in snapshot.tensors], places, record)


def _at(piece: Piece, data: Buffer) -> Piece:
    return piece if data is piece.data else replace(piece, data=data)


def _pieces(tensor: StagedTensor, chunk_bytes: int) -> Iterator[Piece]:
    for begin in range(0, tensor.data.nbytes, chunk_bytes):
        yield Piece(tensor.path, tensor.spec, begin, tensor.data[begin : begin + chunk_bytes])


def _fold(places: list[Place], pack: PackWriter, max_packs: int, compression: str | None) -> None:
    """Writes again what the emptiest of too many packs still give: a reader opens a bounded number."""
    weights: Counter[str] = Counter()
    for place in places:
        if place.pack is not None:
            weights[place.pack.name] += place.stored or place.piece.data.nbytes
    if len(weights) + bool(pack.data_bytes) <= max_packs:
        return
    excess = len(weights) + 1 - max_packs  # what is folded needs a pack, too
    folded = {name for name, _ in sorted(weights.items(), key=lambda item: (item[1], item[0]))[:excess]}
    for place in places:
        if place.pack is not None and place.pack.name in folded:
            smaller = compressed(place.piece) if compression is not None else None
            place.offset = pack.append(place.piece, place.digest, smaller)
            place.pack, place.stored = None, smaller.nbytes if smaller else 0


def assembled(
    tensors: Sequence[tuple[TensorSpec, str]], places: list[list[Place]], own: PackRecord | None
) -> Part:
    """What a manifest says of tensors (spec and kind) whose chunks are at these places."""
    packs: dict[str, PackRecord] = {}
    numbers: dict[str, int] = {}
    records = []
    for (spec, kind), row in zip(tensors, places, strict=True):
        chunks = []
        for place in row:
            pack = place.pack or own
            assert pack is not None
            number = numbers.setdefault(pack.name, len(numbers))
            packs[pack.name] = pack
            offset = place.offset if place.pack else pack.header_size + place.offset
            chunks.append(Chunk(place.digest, number, offset))
        stored = tuple(place.stored for place in row)
        shards = (Shard(tuple(chunks), stored=stored if any(stored) else None),)
        records.append(TensorRecord(spec.dtype, spec.shape, shards, kind))
    return Part(tuple(records), tuple(packs.values()), own.size if own else 0)


def still_there(store: Store, pack: PackRecord) -> bool:
    """Whether a pack that is to be named again stands in the store with the size it had."""
    try:
        return store.info(layout.pack_key(pack.name)).size == pack.size
    except ObjectNotFoundError:
        return False
