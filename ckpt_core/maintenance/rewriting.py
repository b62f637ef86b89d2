"""Moving the live chunks of a half-dead pack to a new one, and finding them there afterwards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from ckpt_core.errors import CkptError, CorruptionError, ObjectExistsError
from ckpt_core.format.compression import Compressed
from ckpt_core.format.documents import Chunk, Forward, ForwardRow, Manifest, PackRecord
from ckpt_core.format.pack import PackHeader, PackWriter, Piece, StoredChunk, header_bound, read_header
from ckpt_core.format.sealed import seal
from ckpt_core.model import Buffer
from ckpt_core.repository import Repository, layout
from ckpt_core.stores import ObjectReader, ObjectWriter

__all__ = ["is_rewritten", "rebased", "rewrite", "serves", "successor"]

_REWRITTEN = re.compile(r"(?P<first>.*/[0-9A-Z]{26}-[0-9]+-[0-9]+)-r(?P<count>[0-9]+)\.safetensors")


def is_rewritten(name: str) -> bool:
    """Whether a pack was made by a rewrite, not by a save."""
    return _REWRITTEN.fullmatch(name) is not None


def rewrite(
    repository: Repository,
    name: str,
    offsets: Iterable[int],
    sources: Iterable[str],
    *,
    alive: Callable[[], object] = lambda: None,
) -> tuple[str, set[int]]:
    """Copies the chunks of a pack at `offsets` to its successor and leaves a forwarding; the pack stays.

    The name of the successor follows from the pack's, and the forwarding from what is in both. So where two
    prunes meet, or one was interrupted, the first copy serves everybody. `sources` are packs rewritten
    earlier whose forwarding leads here: it will lead past it, so that readers follow one step however often
    chunks have moved. `alive` is called again and again meanwhile.

    Returns the successor and the offsets that are forwarded to it, which are not all where another prune
    wanted less. Raises CorruptionError, StoreError; then the pack is needed as before.
    """
    store = repository.store
    target = successor(name)
    with store.open(layout.pack_key(name)) as reader:
        header = read_header(reader.read, reader.size, name)
        if not store.exists(layout.pack_key(target)):
            with suppress(ObjectExistsError):
                _copy(repository, reader, header, name, target, frozenset(offsets), alive)
    with store.open(layout.pack_key(target)) as reader:
        moved = {_form(chunk): chunk.offset for chunk in read_header(reader.read, reader.size, target).chunks}
    rows = tuple(
        ForwardRow(chunk.offset, chunk.digest, target, moved[_form(chunk)])
        for chunk in header.chunks
        if _form(chunk) in moved
    )
    store.put(layout.forward_key(name), seal(Forward(pack=name, rows=rows)))
    for source in sources:
        _lead_past(repository, source, name, {row.offset: row for row in rows})
    return target, {row.offset for row in rows}


def successor(name: str) -> str:
    """The pack to which one is rewritten: `…-0-0-r1.safetensors` for `…-0-0.safetensors`, then `-r2`."""
    match = _REWRITTEN.fullmatch(name)
    if match is None:
        return f"{name.removesuffix('.safetensors')}-r1.safetensors"
    return f"{match['first']}-r{int(match['count']) + 1}.safetensors"


def serves(repository: Repository, name: str, offsets: Iterable[int]) -> bool:
    """Whether the successor of a pack, which an interrupted rewrite left, holds its chunks at `offsets`.

    Raises CorruptionError, StoreError.
    """
    forms = []
    for each in (name, successor(name)):
        with repository.store.open(layout.pack_key(each)) as reader:
            chunks = read_header(reader.read, reader.size, each).chunks
            forms.append({chunk.offset: _form(chunk) for chunk in chunks})
    return {forms[0].get(offset) for offset in offsets} <= set(forms[1].values())


def _form(chunk: StoredChunk) -> tuple[str, int | None, int]:
    """What a chunk must have in common with another to stand in its place: manifests say how long it is, and
    the same bytes as values of two types are compressed to two lengths."""
    return chunk.digest, chunk.expanded, chunk.length


def _copy(
    repository: Repository,
    reader: ObjectReader,
    header: PackHeader,
    name: str,
    target: str,
    live: frozenset[int],
    alive: Callable[[], object],
) -> None:
    chunks = [chunk for chunk in header.chunks if chunk.offset in live]
    if {chunk.offset for chunk in chunks} != live:
        raise CorruptionError(f"pack {name} lacks chunks that manifests name", key=layout.pack_key(name))
    chunk_bytes, algorithm = repository.document.chunk_bytes, repository.document.digest
    writers: list[ObjectWriter] = []

    def create() -> ObjectWriter:
        writers.append(repository.store.create(layout.pack_key(target)))
        return writers[0]

    compressed = any(chunk.expanded is not None for chunk in chunks)
    bound = header_bound({(chunk.path, chunk.spec) for chunk in chunks}, chunk_bytes, compressed=compressed)
    pack = PackWriter(
        create, checkpoint=header.checkpoint, chunk_bytes=chunk_bytes, bound=bound, algorithm=algorithm
    )
    try:
        for chunk in chunks:
            alive()
            piece, stored = _piece(reader.read, chunk, name, algorithm)
            pack.append(piece, chunk.digest, stored)
        pack.finish()
        writers[0].commit()
    finally:
        for writer in writers:
            writer.discard()


def _piece(
    read: Callable[[int, int], Buffer], chunk: StoredChunk, name: str, algorithm: str
) -> tuple[Piece, Compressed | None]:
    stored = read(chunk.offset, chunk.length)
    try:
        data = chunk.content(stored, algorithm)
    except CorruptionError as error:
        raise CorruptionError(
            f"the chunk at {chunk.offset} of pack {name} is damaged; `ckpt verify` lists what it hurts",
            key=layout.pack_key(name),
            offset=chunk.offset,
        ) from error
    as_it_is = Compressed((stored,), stored.nbytes) if chunk.expanded is not None else None
    return Piece(chunk.path, chunk.spec, chunk.begin, data), as_it_is


def _lead_past(repository: Repository, source: str, name: str, moved: dict[int, ForwardRow]) -> None:
    """Makes the forwarding of `source` lead past `name`. Rows that nothing needed any more are dropped."""
    document = repository.forward(source)
    if document is None:
        return
    rows = []
    for row in document.rows:
        if row.pack != name:
            rows.append(row)
        elif row.new_offset in moved:
            beyond = moved[row.new_offset]
            rows.append(ForwardRow(row.offset, row.digest, beyond.pack, beyond.new_offset))
    repository.store.put(layout.forward_key(source), seal(Forward(pack=source, rows=tuple(rows))))


def rebased(repository: Repository, manifest: Manifest) -> Manifest:
    """The manifest with every chunk where it is now, for a save that will name its chunks again.

    Chunks of a rewritten pack are found through its forwarding. What cannot be found stays as it is: the
    commit sees that it is gone, and writes it again.
    """
    forwards: dict[str, dict[int, ForwardRow]] = {}
    records = {record.name: record for record in manifest.packs}
    try:
        for name in records:
            if not repository.store.exists(layout.pack_key(name)):
                document = repository.forward(name)
                forwards[name] = {row.offset: row for row in document.rows} if document else {}
        targets = {row.pack for rows in forwards.values() for row in rows.values()}
        records |= {name: record for name in sorted(targets) if (record := _record(repository, name))}
    except CkptError:  # nothing is lost but the saving of some bytes
        return manifest
    if not any(forwards.values()):
        return manifest
    numbers = {name: number for number, name in enumerate(records)}

    def moved(chunk: Chunk) -> Chunk:
        name = manifest.packs[chunk.pack].name
        row = forwards.get(name, {}).get(chunk.offset)
        if row is None or row.pack not in numbers:
            return Chunk(chunk.digest, numbers[name], chunk.offset)
        return Chunk(chunk.digest, numbers[row.pack], row.new_offset)

    tensors = tuple(
        msgspec.structs.replace(
            tensor,
            shards=tuple(
                msgspec.structs.replace(shard, chunks=tuple(moved(chunk) for chunk in shard.chunks))
                for shard in tensor.shards
            ),
        )
        for tensor in manifest.tensors
    )
    return msgspec.structs.replace(manifest, tensors=tensors, packs=tuple(records.values()))


def _record(repository: Repository, name: str) -> PackRecord | None:
    key = layout.pack_key(name)
    if not repository.store.exists(key):
        return None
    with repository.store.open(key) as reader:
        header = read_header(reader.read, reader.size, name)
        return PackRecord(name, reader.size, header.header_size, header.digest)
