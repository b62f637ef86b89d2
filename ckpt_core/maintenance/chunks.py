"""Whether the chunks of a pack are the bytes that were written: read a few MiB at a time, each under its digest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ckpt_core.errors import CorruptionError, StoreError
from ckpt_core.format.pack import PackHeader, StoredChunk
from ckpt_core.model import Buffer

__all__ = ["Read", "check_group", "damaged_chunks", "groups"]

Read = Callable[[int, int], Buffer]
"""`read(offset, length)`: bytes of a pack, fewer where it ends."""

_TOGETHER = 4 << 20  # chunks are read together up to about so many bytes, or thousands of tiny ones take long


def damaged_chunks(read: Read, header: PackHeader, algorithm: str) -> dict[int, str]:
    """What is wrong with each damaged chunk of a pack, by its offset."""
    found: dict[int, str] = {}
    for group in groups(header.chunks):
        found |= check_group(read, group, algorithm)
    return found


def groups(chunks: Iterable[StoredChunk]) -> Iterator[list[StoredChunk]]:
    """Neighbours, since a pack has no holes."""
    group: list[StoredChunk] = []
    for chunk in chunks:
        group.append(chunk)
        if chunk.offset + chunk.length - group[0].offset >= _TOGETHER:
            yield group
            group = []
    if group:
        yield group


def check_group(read: Read, group: Sequence[StoredChunk], algorithm: str) -> dict[int, str]:
    """What is wrong with each damaged chunk of a group, by its offset. Raises MissingExtraError where a chunk is
    compressed and cannot be expanded here."""
    first, last = group[0], group[-1]
    try:
        data = read(first.offset, last.offset + last.length - first.offset)
    except StoreError as error:
        if len(group) > 1:  # which of them is it?
            return {
                offset: fault
                for chunk in group
                for offset, fault in check_group(read, [chunk], algorithm).items()
            }
        return {first.offset: str(error)}
    faults = {}
    for chunk in group:
        begin = chunk.offset - first.offset
        part = data[begin : begin + chunk.length]
        if part.nbytes != chunk.length:
            faults[chunk.offset] = f"the pack ends inside the chunk at {chunk.offset} ({chunk.path})"
            continue
        try:
            chunk.content(part, algorithm)
        except CorruptionError as error:
            end = chunk.offset + chunk.length
            faults[chunk.offset] = f"bytes {chunk.offset} to {end} ({chunk.path}): {error}"
    return faults
