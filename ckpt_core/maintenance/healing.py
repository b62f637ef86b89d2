"""Healing one pack: put together anew from all that is left of it, proved to the last byte, then put in its place.

What is healed is written under `quarantine/healing/` and read back before it replaces anything. Interrupted at
any instant, a healing leaves the damaged pack as it was, and a leftover that the next one removes.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np

from ckpt_core.errors import CkptError, MissingExtraError, ObjectNotFoundError, StoreError
from ckpt_core.format.documents import PackRecord
from ckpt_core.format.pack import PackHeader, StoredChunk, read_header
from ckpt_core.format.parity import Parity, Write, rebuild, require
from ckpt_core.maintenance.chunks import Read, damaged_chunks, groups
from ckpt_core.maintenance.flips import LONGEST, unflip
from ckpt_core.maintenance.parity import open_parity, open_sidecar
from ckpt_core.maintenance.sources import Source, Sources, tolerant
from ckpt_core.model import Buffer
from ckpt_core.repository import layout
from ckpt_core.stores import ObjectReader

__all__ = ["Healed", "heal_pack", "open_damaged"]

Find = Callable[[StoredChunk, Buffer], Buffer | None]
"""The bytes of a damaged chunk from elsewhere; given is what stands in its place."""
_log = logging.getLogger("ckpt_core.maintenance")


@dataclass(frozen=True, slots=True)
class Healed:
    """What came of a damaged pack: what helped, and how many of its chunks stay damaged (None: all of it)."""

    sources: tuple[Source, ...]
    left: int | None

    @property
    def whole(self) -> bool:
        return self.left == 0


def heal_pack(sources: Sources, name: str, record: PackRecord | None, *, dry_run: bool = False) -> Healed:
    """Heals a pack that is damaged, lost or in quarantine, as far as it can be; `record` is what a manifest says
    of it. With `dry_run` nothing is written, and parity is taken at its word.

    A pack that comes out better than it was takes its place. Raises StoreError; then it is as it was.
    """
    with ExitStack() as stack:
        healed = _Healing(sources, name, record, stack, dry_run).run()
    for stage in ("parity", "pack") if not dry_run else ():  # what took nobody's place
        sources.repository.store.delete(f"{layout.HEALING}/{stage}/{name}")
    return healed


class _Healing:
    def __init__(
        self, sources: Sources, name: str, record: PackRecord | None, stack: ExitStack, dry_run: bool
    ) -> None:
        self._sources = sources
        self._repository = sources.repository
        self._store = sources.repository.store
        self._algorithm = sources.repository.document.digest
        self._name = name
        self._key = layout.pack_key(name)
        self._record = record
        self._stack = stack
        self._dry_run = dry_run
        self._used: list[Source] = []

    def run(self) -> Healed:
        base = open_damaged(self._sources, self._name, self._stack)
        side, parity = self._sidecar()
        size = self._size(base, parity)
        if size is None:
            return Healed((), None)
        read = tolerant(base.read if base is not None else _nothing, size)
        before = self._damage(read, size)
        patched = self._patched(read, size, self._find)
        left = self._damage(patched.read, size)
        if left != before:
            read = patched.read
        finished: str | None = None
        if left != 0 and side is not None and parity is not None and self._can_decode():
            if self._dry_run:
                lost = rebuild(read, side.read, parity, None).lost_bytes
                return Healed((*self._used, "parity"), left if lost else 0)
            finished = self._write("parity", lambda write: rebuild(read, side.read, parity, write))
            rebuilt = self._stack.enter_context(self._store.open(finished))
            self._used.append("parity")
            read, left = rebuilt.read, self._damage(rebuilt.read, size)
        if left != 0 and base is not None:
            patched = self._patched(read, size, self._find_or_try)
            finished, left = None, self._damage(patched.read, size)
        better = left is not None and (before is None or left < before)
        if not better or self._dry_run:
            return Healed(tuple(dict.fromkeys(self._used)), left)
        if finished is None:
            finished = self._write("pack", patched.copy_to)
        with self._store.open(finished) as written:
            if self._damage(written.read, written.size) != left:
                raise StoreError(
                    f"what was healed of pack {self._name} did not stay as it was written", kind="io"
                )
        self._store.move(finished, self._key)
        self._store.delete(layout.quarantine_key(self._key))
        side_key = layout.parity_key(self._name)
        with suppress(ObjectNotFoundError):
            self._store.move(layout.quarantine_key(side_key), side_key)
        self._sources.changed()
        return Healed(tuple(dict.fromkeys(self._used)), left)

    # -- what is left of it ----------------------------------------------------------------------

    def _sidecar(self) -> tuple[ObjectReader | None, Parity | None]:
        try:
            side = open_sidecar(self._repository, self._name, self._stack)
            return side, None if side is None else open_parity(side, self._name)
        except CkptError as error:
            _log.debug("no parity of %s: %s", self._name, error)
            return None, None

    def _can_decode(self) -> bool:
        try:
            require()
        except MissingExtraError as error:
            _log.error("pack %s has parity that cannot be used: %s", self._name, error)
            return False
        return True

    def _size(self, base: ObjectReader | None, parity: Parity | None) -> int | None:
        if self._record is not None:
            return self._record.size
        if parity is not None:
            return parity.document.size
        mirrored = self._on_mirror()
        if mirrored is not None:
            return mirrored.size
        return base.size if base is not None else None

    def _on_mirror(self) -> ObjectReader | None:
        mirror = self._sources.mirror
        if mirror is None:
            return None
        try:
            return self._stack.enter_context(mirror.store.open(self._key))
        except CkptError:
            return None

    def _header(self, read: Read, size: int) -> PackHeader | None:
        """The header as `read` has it, if it is the one that it should be."""
        try:
            header = read_header(read, size, self._name)
        except CkptError:
            return None
        if self._record is not None and header.digest != self._record.header:
            return None
        return header

    def _damage(self, read: Read, size: int) -> int | None:
        """How many chunks are damaged; None where the header is."""
        header = self._header(read, size)
        return None if header is None else len(damaged_chunks(read, header, self._algorithm))

    # -- what can be had elsewhere ---------------------------------------------------------------

    def _patched(self, read: Read, size: int, find: Find) -> _Patched:
        """The pack with what `find` finds put over what is damaged."""
        patched = _Patched(read, find)
        header = self._header(read, size)
        if header is None:
            raw = self._header_from_elsewhere(read, size)
            if raw is None:
                return patched
            patched.header = raw
            header = self._header(patched.read, size)
            if header is None:
                return patched
        damaged = damaged_chunks(patched.read, header, self._algorithm)
        patched.chunks = header.chunks
        patched.header_size = header.header_size
        patched.damaged = [chunk for chunk in header.chunks if chunk.offset in damaged]
        return patched

    def _header_from_elsewhere(self, read: Read, size: int) -> Buffer | None:
        mirrored = self._on_mirror()
        if mirrored is not None and mirrored.size == size:
            header = self._header(mirrored.read, mirrored.size)
            if header is not None:
                self._used.append("mirror")
                return mirrored.read(0, header.header_size)
        record = self._record
        if record is not None and record.header_size <= LONGEST:
            fixed = unflip(read(0, record.header_size).tobytes(), record.header)
            if fixed is not None:
                self._used.append("bit")
                return np.frombuffer(fixed, np.uint8)
        return None

    def _find(self, chunk: StoredChunk, flawed: Buffer) -> Buffer | None:
        found = self._sources.find(self._name, chunk)
        if found is None:
            return None
        self._used.append(found.source)
        return found.stored

    def _find_or_try(self, chunk: StoredChunk, flawed: Buffer) -> Buffer | None:
        found = self._find(chunk, flawed)
        if found is not None:
            return found
        fixed = self._sources.unflip(flawed, chunk)
        if fixed is not None:
            self._used.append("bit")
        return fixed

    # -- written ---------------------------------------------------------------------------------

    def _write(self, stage: str, fill: Callable[[Write], object]) -> str:
        place = f"{layout.HEALING}/{stage}/{self._name}"
        self._store.delete(place)
        with self._store.create(place) as writer:
            fill(self._alive(writer.write))
            writer.commit()
        return place

    def _alive(self, write: Write) -> Write:
        def written(offset: int, data: Buffer) -> None:
            self._sources.alive()
            write(offset, data)

        return written


class _Patched:
    """A pack whose damaged chunks are found elsewhere when they are read: all of them might not fit into memory."""

    def __init__(self, read: Read, find: Find) -> None:
        self._read = read
        self._find = find
        self._last: tuple[int, Buffer] | None = None
        self.header: Buffer | None = None
        """The header, where it is not what `read` gives."""
        self.header_size = 0
        self.chunks: Sequence[StoredChunk] = ()
        self.damaged: Sequence[StoredChunk] = ()

    def read(self, offset: int, length: int) -> Buffer:
        """Bytes of the pack."""
        out = self._read(offset, length)
        if self.header is None and not self.damaged:
            return out
        out = out.copy()
        if self.header is not None and offset < self.header.nbytes:
            part = self.header[offset : offset + out.nbytes]
            out[: part.nbytes] = part
        first = bisect_right(self.damaged, offset, key=lambda chunk: chunk.offset + chunk.length)
        for chunk in self.damaged[first:]:
            begin, end = max(chunk.offset, offset), min(chunk.offset + chunk.length, offset + out.nbytes)
            if begin >= end:
                break
            out[begin - offset : end - offset] = self._chunk(chunk)[begin - chunk.offset : end - chunk.offset]
        return out

    def copy_to(self, write: Write) -> None:
        """Writes the pack from its beginning to its end."""
        write(0, self.read(0, self.header_size))
        for group in groups(self.chunks):
            begin, last = group[0].offset, group[-1]
            write(begin, self.read(begin, last.offset + last.length - begin))

    def _chunk(self, chunk: StoredChunk) -> Buffer:
        if self._last is None or self._last[0] != chunk.offset:
            flawed = self._read(chunk.offset, chunk.length)
            found = self._find(chunk, flawed)
            self._last = (chunk.offset, flawed if found is None else found)
        return self._last[1]


def open_damaged(sources: Sources, name: str, stack: ExitStack) -> ObjectReader | None:
    """What is left of a pack: in its place, or in quarantine."""
    key = layout.pack_key(name)
    for place in (key, layout.quarantine_key(key)):
        try:
            return stack.enter_context(sources.repository.store.open(place))
        except ObjectNotFoundError:
            continue
        except StoreError as error:
            _log.warning("%s cannot be opened: %s", place, error)
    return None


def _nothing(offset: int, length: int) -> Buffer:
    return np.empty(0, np.uint8)
