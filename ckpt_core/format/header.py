"""Reading the header of a pack, which comes from a file and is believed in nothing that it does not prove.

The layout is that of `pack`, which writes it; `docs/format.md` describes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, NoReturn

import msgspec
import numpy as np
from msgspec import Meta

from ckpt_core.errors import CkptError, CorruptionError, FormatError
from ckpt_core.format.compression import EXPANSION, expand
from ckpt_core.format.hashing import ALGORITHMS, digest_of
from ckpt_core.format.sealed import COMPRESSED_FORMAT, DIGEST_LENGTH, FORMAT, digest_text
from ckpt_core.model import Buffer, TensorSpec

__all__ = ["BLANK", "HEADER_LIMIT", "PAGE", "PREFIX", "SEAL_AT", "PackHeader", "StoredChunk", "read_header"]

PAGE = 4096
"""Headers end, and data begins, at a multiple of this."""

HEADER_LIMIT = 100_000_000
"""Bytes of JSON in a header: safetensors refuses longer ones."""

PREFIX = b'{"__metadata__":{"ckpt.sha256":"'
SEAL_AT = 8 + len(PREFIX)
"""Where a header's own digest stands, and what stands there while it is taken."""
BLANK = b"A" * DIGEST_LENGTH

_Count = Annotated[int, Meta(ge=0, le=1 << 62)]
_Shape = tuple[_Count, ...]
_LONGEST_CHUNK = 1 << 30


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """One chunk as a pack's own header describes it. `offset` counts from the pack's beginning, `length` are
    the bytes that it takes there, and `expanded` those that it holds, where it is compressed."""

    path: str
    spec: TensorSpec
    begin: int
    offset: int
    length: int
    digest: str
    expanded: int | None = None

    def content(self, stored: Buffer, algorithm: str) -> Buffer:
        """The bytes of the tensor, from those in the pack. Raises CorruptionError where they are not those that
        were written; MissingExtraError."""
        data = stored
        if self.expanded is not None:
            data = np.empty(self.expanded, np.uint8)
            expand(stored, data)
        if digest_of(data, algorithm) != self.digest:
            raise CorruptionError("the digest does not match")
        return data


@dataclass(frozen=True, slots=True)
class PackHeader:
    """A pack's header, checked against the digest inside it."""

    checkpoint: str
    header_size: int
    data_bytes: int
    digest: str
    chunks: tuple[StoredChunk, ...]
    chunk_bytes: int
    algorithm: str


class _Entry(msgspec.Struct):
    dtype: str
    shape: _Shape
    data_offsets: tuple[_Count, _Count]


class _True(msgspec.Struct, array_like=True):
    """What an entry is where it is not simply a tensor under its own path. `end` and `stored` (the bytes that
    each chunk takes) are those of one whose chunks are compressed."""

    path: str
    dtype: str
    shape: _Shape
    begin: _Count
    end: _Count = 0
    stored: tuple[_Count, ...] = ()


def read_header(read: Callable[[int, int], Buffer], size: int, where: str) -> PackHeader:
    """The header of a pack of `size` bytes, checked against its own digest and against its size.

    `read(offset, length)` gives bytes of the pack. Raises CorruptionError; FormatError for a newer format.
    """
    if size < PAGE:
        _corrupt(where, "it is too short to be a pack")
    length = int.from_bytes(read(0, 8).tobytes(), "little")
    if length > min(HEADER_LIMIT, size - 8) or (length + 8) % PAGE:
        _corrupt(where, "the length of its header is not possible")
    raw = read(0, length + 8).tobytes()
    if len(raw) != length + 8 or raw[8:SEAL_AT] != PREFIX:
        _corrupt(where, "its header is not one of this engine")
    end = SEAL_AT + DIGEST_LENGTH
    blank = raw[:SEAL_AT] + BLANK + raw[end:]
    if raw[SEAL_AT:end] != digest_text(hashlib.sha256(blank).digest()).encode():
        _corrupt(where, "the SHA-256 of its header does not match")
    try:
        return _parsed(raw, size, where)
    except CkptError:
        raise
    except (msgspec.MsgspecError, KeyError, ValueError, RecursionError) as error:
        raise CorruptionError(f"pack {where} is damaged: {error!r}", kind="header", key=where) from error


def _parsed(raw: bytes, size: int, where: str) -> PackHeader:
    rows = msgspec.json.decode(raw[8:], type=dict[str, msgspec.Raw])
    metadata = msgspec.json.decode(rows.pop("__metadata__"), type=dict[str, str])
    version = int(metadata["ckpt.format"])
    if version > COMPRESSED_FORMAT or metadata["ckpt.digest"] not in ALGORITHMS:
        raise FormatError(
            f"pack {where} is of format {metadata['ckpt.format']!r} with digests by "
            f"{metadata['ckpt.digest']!r}: upgrade ckpt-core",
            format=metadata["ckpt.format"],
            key=where,
        )
    true = msgspec.json.decode(metadata.get("ckpt.tensors", "{}"), type=dict[str, _True])
    entries = [(key, msgspec.json.decode(row, type=_Entry)) for key, row in rows.items()]
    entries.sort(key=lambda item: item[1].data_offsets)
    chunk_bytes = int(metadata["ckpt.chunk_bytes"])
    digests = metadata["ckpt.digests"].split()
    if version == FORMAT and any(each.stored for each in true.values()):
        _corrupt(where, f"it has compressed chunks, which format {FORMAT} has not")
    _check(entries, true, chunk_bytes, len(digests), size - len(raw), where)
    chunks: list[StoredChunk] = []
    for key, entry in entries:
        each = true.get(key) or _True(key, entry.dtype, entry.shape, 0)
        spec = TensorSpec(each.dtype, each.shape)
        start, stop = entry.data_offsets
        at, begin = len(raw) + start, each.begin
        for length in each.stored or _cut(stop - start, chunk_bytes):
            expanded = min(chunk_bytes, each.end - begin) if each.stored else None
            chunks.append(StoredChunk(each.path, spec, begin, at, length, digests[len(chunks)], expanded))
            at, begin = at + length, begin + chunk_bytes
    digest = digest_text(hashlib.sha256(raw).digest())
    return PackHeader(
        checkpoint=metadata["ckpt.checkpoint"],
        header_size=len(raw),
        data_bytes=size - len(raw),
        digest=digest,
        chunks=tuple(chunks),
        chunk_bytes=chunk_bytes,
        algorithm=metadata["ckpt.digest"],
    )


def _check(
    entries: list[tuple[str, _Entry]],
    true: dict[str, _True],
    chunk_bytes: int,
    digests: int,
    data_bytes: int,
    where: str,
) -> None:
    """That the entries fill the data without holes, with a digest for each chunk. Takes no memory."""
    if chunk_bytes < 1:
        _corrupt(where, "the length of its chunks is not possible")
    end = count = 0
    for key, entry in entries:
        start, stop = entry.data_offsets
        each = true.get(key)
        if start != end or stop < start or (each is not None and each.begin % chunk_bytes):
            _corrupt(where, "its tensors do not lie one behind the other")
        if each is not None and each.stored:
            _check_stored(each, stop - start, chunk_bytes, where)
            count += len(each.stored)
        else:
            count += -(-(stop - start) // chunk_bytes)
        end = stop
    if end != data_bytes or count != digests:
        _corrupt(where, "its size or the number of its digests does not fit its header")


def _check_stored(each: _True, length: int, chunk_bytes: int, where: str) -> None:
    """That compressed chunks fill their entry, and that none claims to hold more than it can."""
    chunks = -(-(each.end - each.begin) // chunk_bytes)
    if chunks != len(each.stored) or sum(each.stored) != length or chunk_bytes > _LONGEST_CHUNK:
        _corrupt(where, "its compressed chunks do not fill their place")
    last = each.end - each.begin - (chunks - 1) * chunk_bytes
    for number, stored in enumerate(each.stored, 1):
        if (chunk_bytes if number < chunks else last) > stored * EXPANSION:
            _corrupt(where, "a compressed chunk is too short for what it is to hold")


def _cut(length: int, chunk_bytes: int) -> Iterator[int]:
    """The lengths of the chunks of an entry."""
    for at in range(0, length, chunk_bytes):
        yield min(chunk_bytes, length - at)


def _corrupt(where: str, reason: str) -> NoReturn:
    raise CorruptionError(f"pack {where} is damaged: {reason}", kind="header", key=where)
