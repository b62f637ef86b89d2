"""Where the bytes of a damaged pack may still be: in another pack of the store, on the mirror, a flipped bit away.

Whatever is found is proved by its digest before anybody gets it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ckpt_core.errors import CkptError, CorruptionError, StoreError
from ckpt_core.format.pack import StoredChunk, read_header
from ckpt_core.maintenance.census import packs_in
from ckpt_core.maintenance.chunks import Read
from ckpt_core.maintenance.flips import LONGEST, unflip
from ckpt_core.model import Buffer
from ckpt_core.repository import Repository, layout

__all__ = ["Found", "Source", "Sources", "tolerant"]

Source = Literal["store", "mirror", "parity", "bit", "manifest"]
"""What healed something: another pack of the store, the mirror, parity, a flipped bit, or what manifests say."""

_PIECE = 4096
_TRIALS = 128 << 30
"""Bytes that may be hashed in all to find flipped bits: a minute or two."""


class Place(NamedTuple):
    """Where a chunk is."""

    pack: str
    chunk: StoredChunk


@dataclass(frozen=True, slots=True)
class Found:
    """A chunk as a pack holds it, and where it was found; `place` where that is a pack of the store itself that
    stays."""

    stored: Buffer
    source: Source
    place: Place | None = None


class Sources:
    """Looks for chunks by their digest. Indexes the packs of a store when first asked for. One thread at a time.

    `alive` is called again and again while something is read or written.
    """

    def __init__(
        self, repository: Repository, mirror: Repository | None, alive: Callable[[], object] = lambda: None
    ) -> None:
        self.alive = alive
        self.repository = repository
        self.mirror = mirror
        self.leaving: set[str] = set()
        """Packs that will not stay where they are: their chunks are to be copied, not pointed to."""
        self._indexes: dict[Source, dict[_Form, list[Place]]] = {}
        self._tried: dict[str, Buffer | None] = {}
        self._trials = _TRIALS

    def find(self, pack: str, chunk: StoredChunk) -> Found | None:
        """A chunk that should be in a pack, and is looked for everywhere but there."""
        self.alive()
        own = Place(pack, chunk)
        for source, repository in self._stores():
            if source == "mirror" and (data := self._read(repository, own, chunk)) is not None:
                return Found(data, source)
            for place in self._index(source, repository).get(_form(chunk), ()):
                if source == "store" and (place.pack, place.chunk.offset) == (pack, chunk.offset):
                    continue
                data = self._read(repository, place, chunk)
                if data is not None:
                    stays = source == "store" and place.pack not in self.leaving
                    return Found(data, source, place if stays else None)
        return None

    def intact(self, stored: Buffer, chunk: StoredChunk) -> bool:
        """Whether these bytes are those of the chunk."""
        if stored.nbytes != chunk.length:
            return False
        try:
            chunk.content(stored, self.repository.document.digest)
        except CorruptionError:
            return False
        return True

    def unflip(self, flawed: Buffer, chunk: StoredChunk) -> Buffer | None:
        """The bytes of a chunk, if they are one bit away from these, and there is time left to try."""
        if chunk.digest in self._tried:
            return self._tried[chunk.digest]
        work = 4 * flawed.nbytes * flawed.nbytes
        if chunk.expanded is not None or flawed.nbytes > LONGEST or work > self._trials:
            return None
        self._trials -= work
        fixed = unflip(flawed.tobytes(), chunk.digest, self.repository.document.digest)
        self._tried[chunk.digest] = None if fixed is None else np.frombuffer(fixed, np.uint8)
        return self._tried[chunk.digest]

    def changed(self) -> None:
        """The packs of the store are not those that they were."""
        self._indexes.pop("store", None)

    def _stores(self) -> Iterator[tuple[Source, Repository]]:
        yield "store", self.repository
        if self.mirror is not None:
            yield "mirror", self.mirror

    def _index(self, source: Source, repository: Repository) -> dict[_Form, list[Place]]:
        if source not in self._indexes:
            index: dict[_Form, list[Place]] = {}
            try:
                for name, _ in packs_in(repository):
                    for place in _places(repository, name):
                        index.setdefault(_form(place.chunk), []).append(place)
            except StoreError:
                if source == "store":
                    raise
            self._indexes[source] = index
        return self._indexes[source]

    def _read(self, repository: Repository, place: Place, chunk: StoredChunk) -> Buffer | None:
        try:
            with repository.store.open(layout.pack_key(place.pack)) as reader:
                stored = reader.read(place.chunk.offset, chunk.length)
        except CkptError:
            return None
        return stored if self.intact(stored, chunk) else None


_Form = tuple[str, int | None, int]


def _form(chunk: StoredChunk) -> _Form:
    """What a chunk must have in common with another to stand in its place: manifests say how long it is."""
    return chunk.digest, chunk.expanded, chunk.length


def _places(repository: Repository, name: str) -> Iterator[Place]:
    try:
        with repository.store.open(layout.pack_key(name)) as reader:
            header = read_header(reader.read, reader.size, name)
    except CkptError:
        return
    for chunk in header.chunks:
        yield Place(name, chunk)


def tolerant(read: Read, size: int) -> Read:
    """As `read`, with zeros for what cannot be read and for what is missing up to `size`."""

    def zeros_for_lost(offset: int, length: int) -> Buffer:
        length = max(0, min(length, size - offset))
        out = np.zeros(length, np.uint8)
        try:
            found = read(offset, length)
            out[: found.nbytes] = found
        except StoreError:
            if length > _PIECE:  # what lies beside a bad sector can be read
                for at in range(0, length, _PIECE):
                    part = zeros_for_lost(offset + at, min(_PIECE, length - at))
                    out[at : at + part.nbytes] = part
        return out

    return zeros_for_lost
