"""Packs: valid safetensors files that carry the digest of every chunk in them, and of their own header.

Source of the container: https://github.com/huggingface/safetensors (64-bit little-endian length of a JSON
header, the header, then the tensors without holes). What this engine adds stands in `__metadata__`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import msgspec
import numpy as np

from ckpt_core.errors import CorruptionError, FormatError
from ckpt_core.format.sealed import DIGEST_LENGTH, FORMAT, digest_text
from ckpt_core.model import Buffer, TensorSpec
from ckpt_core.tree import dtypes

__all__ = ["Piece", "PackHeader", "PackWriter", "StoredChunk", "WrittenPack", "header_bound", "read_header"]

PAGE = 4096
_PREFIX = b'{"__metadata__":{"ckpt.sha256":"'
_BLANK = b"A" * DIGEST_LENGTH
_LIMIT = 100_000_000  # safetensors refuses longer headers
_HOLD = 32 << 20
_GATHER = 1 << 20


class Sink(Protocol):
    """Where a pack's bytes go: an object writer of a store."""

    def write(self, offset: int, data: Buffer | bytes | memoryview) -> None: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk of a tensor on its way into a pack. `begin` counts bytes from the tensor's first."""

    path: str
    spec: TensorSpec
    begin: int
    data: Buffer


@dataclass(frozen=True, slots=True)
class WrittenPack:
    """What a manifest says of a pack: its size, the size and the digest of its header."""

    size: int
    header_size: int
    header_digest: str


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """One chunk as a pack's own header describes it. `offset` counts from the pack's beginning."""

    path: str
    spec: TensorSpec
    begin: int
    offset: int
    length: int
    digest: str


@dataclass(frozen=True, slots=True)
class PackHeader:
    """A pack's header, checked against the digest inside it."""

    checkpoint: str
    header_size: int
    data_bytes: int
    digest: str
    chunks: tuple[StoredChunk, ...]


class _Run:
    """Consecutive chunks of one tensor: one entry of the header."""

    def __init__(self, piece: Piece, start: int) -> None:
        self.path, self.spec, self.begin, self.start = piece.path, piece.spec, piece.begin, start
        self.length = 0

    @property
    def whole(self) -> bool:
        return self.begin == 0 and self.length == dtypes.nbytes(self.spec)


def header_bound(specs: Iterable[tuple[str, TensorSpec]], chunk_bytes: int) -> int:
    """Bytes that a pack's header cannot exceed, whichever chunks of these tensors go into it."""
    total = 1024
    for path, spec in specs:
        chunks = -(-dtypes.nbytes(spec) // chunk_bytes)
        named = 2 * (len(msgspec.json.encode(path)) * 2 + 40) + 24 * (len(spec.shape) + 1) + 200
        total += chunks * (DIGEST_LENGTH + 1) + max((chunks + 1) // 2, 1) * named
    return -(-total // PAGE) * PAGE


class PackWriter:
    """Writes pieces one behind the other while the header is still unknown.

    The first 32 MiB are held back (as views, not copies): a save that changed little gets a header of
    just the size it needs; a larger one starts behind `bound` bytes kept for the header.
    """

    def __init__(self, create: Callable[[], Sink], *, checkpoint: str, chunk_bytes: int, bound: int) -> None:
        self._create = create
        self._facts = {"ckpt.format": str(FORMAT), "ckpt.checkpoint": checkpoint, "ckpt.digest": "sha256",
                       "ckpt.chunk_bytes": str(chunk_bytes)}  # fmt: skip
        self._bound = bound
        self._runs: list[_Run] = []
        self._digests: list[str] = []
        self._held: list[Buffer] | None = []
        self._gathered = bytearray()
        self._flushed = 0
        self._sink: Sink | None = None
        self.data_bytes = 0

    def append(self, piece: Piece, digest: str) -> int:
        """Takes one piece; returns where it will start, counted from the end of the header."""
        start = self.data_bytes
        last = self._runs[-1] if self._runs else None
        if last is None or last.path != piece.path or last.begin + last.length != piece.begin or not last.length:
            last = _Run(piece, start)
            self._runs.append(last)
        last.length += piece.data.nbytes
        if piece.data.nbytes:
            self._digests.append(digest)
        self.data_bytes += piece.data.nbytes
        if self._held is not None:
            self._held.append(piece.data)
            if self.data_bytes > _HOLD:
                self._release(self._bound)
        else:
            self._write(piece.data)
        return start

    def finish(self) -> WrittenPack:
        """Writes what is left and the header. The object is complete, and still to be committed."""
        header = self._header()
        if self._held is not None:
            size = -(-(len(header) + 8) // PAGE) * PAGE
            self._release(size)
        else:
            size = self._bound
        self._flush()
        assert len(header) + 8 <= size, "the bound on the header's size is wrong"
        blank = (size - 8).to_bytes(8, "little") + header.ljust(size - 8)
        seal = digest_text(hashlib.sha256(blank).digest()).encode()
        at = 8 + len(_PREFIX)
        sealed = blank[:at] + seal + blank[at + DIGEST_LENGTH :]
        assert self._sink is not None
        self._sink.write(0, sealed)
        return WrittenPack(size + self.data_bytes, size, digest_text(hashlib.sha256(sealed).digest()))

    def _release(self, header_size: int) -> None:
        held, self._held = self._held or [], None
        self._sink = self._create()
        self._flushed = header_size
        for data in held:
            self._write(data)

    def _write(self, data: Buffer) -> None:
        if data.nbytes < _GATHER // 4:
            self._gathered += data.data
            if len(self._gathered) >= _GATHER:
                self._flush()
            return
        self._flush()
        self._put(data)

    def _flush(self) -> None:
        if self._gathered:
            self._put(self._gathered)
            self._gathered = bytearray()

    def _put(self, data: Buffer | bytearray) -> None:
        assert self._sink is not None
        self._sink.write(self._flushed, memoryview(data))
        self._flushed += memoryview(data).nbytes

    def _header(self) -> bytes:
        keys = _keys(self._runs)
        entries: dict[str, Any] = {}
        true: dict[str, list[Any]] = {}
        for key, run in zip(keys, self._runs, strict=True):
            stored = dtypes.stored_as(run.spec) if run.whole else TensorSpec("U8", (run.length,))
            end = run.start + run.length
            entries[key] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": [run.start, end]}
            if key != run.path or stored != run.spec:
                true[key] = [run.path, run.spec.dtype, run.spec.shape, run.begin]
        metadata = {"ckpt.sha256": _BLANK.decode(), **self._facts, "ckpt.digests": " ".join(self._digests)}
        if true:
            metadata["ckpt.tensors"] = msgspec.json.encode(true).decode()
        return msgspec.json.encode({"__metadata__": metadata, **entries})


def _keys(runs: Sequence[_Run]) -> list[str]:
    """The names under which plain safetensors readers find the runs: a whole tensor's is its path."""
    taken = {"__metadata__"} | {run.path for run in runs if run.whole}
    keys = []
    for run in runs:
        key = run.path
        if not run.whole or key == "__metadata__":
            base = f"{run.path}[{run.begin}:{run.begin + run.length}]"
            key, n = base, 1
            while key in taken:
                n += 1
                key = f"{base}#{n}"
            taken.add(key)
        keys.append(key)
    return keys


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_header(read: Callable[[int, int], Buffer], size: int, where: str) -> PackHeader:
    """The header of a pack of `size` bytes, checked against its own digest and against its size.

    `read(offset, length)` gives bytes of the pack. Raises CorruptionError; FormatError for a newer format.
    """
    if size < PAGE:
        _corrupt(where, "it is too short to be a pack")
    length = int.from_bytes(read(0, 8).tobytes(), "little")
    if length > min(_LIMIT, size - 8) or (length + 8) % PAGE:
        _corrupt(where, "the length of its header is not possible")
    raw = read(0, length + 8).tobytes()
    at = 8 + len(_PREFIX)
    if len(raw) != length + 8 or raw[8:at] != _PREFIX:
        _corrupt(where, "its header is not one of this engine")
    blank = raw[:at] + _BLANK + raw[at + DIGEST_LENGTH :]
    if raw[at : at + DIGEST_LENGTH].decode(errors="replace") != digest_text(hashlib.sha256(blank).digest()):
        _corrupt(where, "the SHA-256 of its header does not match")
    try:
        return _parsed(raw, size, where)
    except (msgspec.MsgspecError, KeyError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, (CorruptionError, FormatError)):
            raise
        raise CorruptionError(f"pack {where} is damaged: {error}", kind="header", key=where) from error


def _parsed(raw: bytes, size: int, where: str) -> PackHeader:
    rows = msgspec.json.decode(raw[8:], type=dict[str, msgspec.Raw])
    metadata = msgspec.json.decode(rows.pop("__metadata__"), type=dict[str, str])
    if int(metadata["ckpt.format"]) > FORMAT:
        raise FormatError(
            f"pack {where} is of format {metadata['ckpt.format']}: upgrade ckpt-core",
            format=metadata["ckpt.format"],
            key=where,
        )
    chunk_bytes = int(metadata["ckpt.chunk_bytes"])
    true = msgspec.json.decode(metadata.get("ckpt.tensors", "{}"), type=dict[str, tuple[str, str, tuple[int, ...], int]])
    entries = sorted(((key, msgspec.json.decode(row, type=_Entry)) for key, row in rows.items()),
                     key=lambda item: item[1].data_offsets)  # fmt: skip
    digests = iter(metadata["ckpt.digests"].split())
    chunks: list[StoredChunk] = []
    end = 0
    for key, entry in entries:
        start, stop = entry.data_offsets
        path, dtype, shape, begin = true.get(key, (key, entry.dtype, entry.shape, 0))
        if start != end or stop < start or chunk_bytes < 1 or begin % chunk_bytes:
            _corrupt(where, "its tensors do not lie one behind the other")
        spec = TensorSpec(dtype, tuple(shape))
        for offset, count in _spans(stop - start, chunk_bytes):
            chunks.append(StoredChunk(path, spec, begin + offset, len(raw) + start + offset, count, next(digests, "")))
        end = stop
    if len(raw) + end != size or next(digests, None) is not None or (chunks and not chunks[-1].digest):
        _corrupt(where, "its size or the number of its digests does not fit its header")
    return PackHeader(metadata["ckpt.checkpoint"], len(raw), end, digest_text(hashlib.sha256(raw).digest()), tuple(chunks))


def _spans(length: int, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    for offset in range(0, length, chunk_bytes):
        yield offset, min(chunk_bytes, length - offset)


def _corrupt(where: str, reason: str) -> NoReturn:
    raise CorruptionError(f"pack {where} is damaged: {reason}", kind="header", key=where)


def empty_piece(path: str, spec: TensorSpec) -> Piece:
    """The one piece of a tensor without bytes, so that plain safetensors readers see it too."""
    return Piece(path, spec, 0, np.empty(0, np.uint8))
