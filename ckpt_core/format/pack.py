"""Writing packs: safetensors files that carry the digest of every chunk in them, and of their own header.

Source of the container: https://github.com/huggingface/safetensors (64-bit little-endian length of a JSON
header, the header, then the tensors without holes). What this engine adds stands in `__metadata__`.
Reading them: `header`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np

from ckpt_core.errors import StateError
from ckpt_core.format.compression import Compressed
from ckpt_core.format.header import (
    BLANK,
    HEADER_LIMIT,
    PAGE,
    PREFIX,
    SEAL_AT,
    PackHeader,
    StoredChunk,
    read_header,
)
from ckpt_core.format.sealed import COMPRESSED_FORMAT, DIGEST_LENGTH, FORMAT, digest_text
from ckpt_core.model import Buffer, TensorSpec
from ckpt_core.tree import dtypes

__all__ = [
    "PackHeader",
    "PackWriter",
    "Piece",
    "StoredChunk",
    "WrittenPack",
    "empty_piece",
    "header_bound",
    "pack_order",
    "read_header",
]

_HOLD = 32 << 20
_GATHER = 1 << 20


class Sink(Protocol):
    """Where a pack's bytes go: an object writer of a store."""

    def write(self, offset: int, data: Buffer | bytes | bytearray) -> None: ...


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


class _Run:
    """Consecutive chunks of one tensor, all compressed or none: one entry of the header."""

    def __init__(self, piece: Piece, start: int) -> None:
        self.path, self.spec, self.begin, self.start = piece.path, piece.spec, piece.begin, start
        self.length = 0
        self.compressed: list[int] = []

    def goes_on_with(self, piece: Piece, compressed: Compressed | None) -> bool:
        """Whether a piece is the next one of the same tensor."""
        alike = bool(self.compressed) == (compressed is not None)
        return (
            alike and self.length > 0 and piece.path == self.path and piece.begin == self.begin + self.length
        )

    def add(self, piece: Piece, compressed: Compressed | None) -> None:
        """Goes on with a piece."""
        self.length += piece.data.nbytes
        if compressed is not None:
            self.compressed.append(compressed.nbytes)

    @property
    def stored(self) -> TensorSpec | None:
        """What the header calls it where it is a whole tensor, aligned for its dtype; else None."""
        spec = dtypes.stored_as(self.spec)
        whole = self.begin == 0 and self.length == dtypes.nbytes(self.spec)
        aligned = not self.length or self.start % dtypes.alignment(spec.dtype) == 0
        return spec if whole and aligned and not self.compressed else None

    @property
    def stored_length(self) -> int:
        """Bytes that it takes in the pack."""
        return sum(self.compressed) if self.compressed else self.length

    @property
    def true(self) -> list[Any]:
        """What it is, for the header, where its entry does not say it all."""
        end = [self.begin + self.length, self.compressed] if self.compressed else []
        return [self.path, self.spec.dtype, self.spec.shape, self.begin, *end]


def pack_order(specs: Sequence[TensorSpec]) -> list[int]:
    """Indices of tensors in the order in which a pack holds them: one behind the other without holes, each then
    starts where its dtype wants it to, as those with larger alignments go first."""
    alignments = [dtypes.alignment(spec.dtype) for spec in specs]
    return sorted(range(len(specs)), key=lambda i: -alignments[i])


_JSON = msgspec.json.Encoder()


def header_bound(
    specs: Iterable[tuple[str, TensorSpec]], chunk_bytes: int, *, compressed: bool = False
) -> int:
    """Bytes that a pack's header cannot exceed, whichever chunks of these tensors go into it, however they are
    ordered, and, with `compressed`, whichever of them are."""
    total = 1024
    for path, spec in specs:
        runs = max(-(-dtypes.nbytes(spec) // chunk_bytes), 1)
        # A run is an entry of its own, and its true tensor once more, in JSON within JSON.
        name, dtype = len(_JSON.encode(path)), len(spec.dtype) + 2
        shape = len(str(spec.shape)) + 22
        entry, true = name + shape + 170, 2 * (2 * name + dtype + shape + 90)
        total += runs * (DIGEST_LENGTH + entry + true + 48 * compressed)
    return -(-total // PAGE) * PAGE


class PackWriter:
    """Writes pieces one behind the other while the header is still unknown.

    The first 32 MiB are held back (as views, not copies; of what is compressed a quarter): a save that changed
    little gets a header of just the size it needs; a larger one starts behind `bound` bytes kept for the
    header. `create` is called once, and only when there is something to write.
    """

    def __init__(
        self,
        create: Callable[[], Sink],
        *,
        checkpoint: str,
        chunk_bytes: int,
        bound: int,
        algorithm: str = "sha256",
    ) -> None:
        self._create = create
        self._facts = {"ckpt.checkpoint": checkpoint, "ckpt.digest": algorithm,
                       "ckpt.chunk_bytes": str(chunk_bytes)}  # fmt: skip
        self._bound = min(bound, (HEADER_LIMIT + 8) // PAGE * PAGE)
        self._runs: list[_Run] = []
        self._digests: list[str] = []
        self._held: list[Buffer] | None = []
        self._gathered = bytearray()
        self._flushed = 0
        self._sink: Sink | None = None
        self.data_bytes = 0

    def append(self, piece: Piece, digest: str, compressed: Compressed | None = None) -> int:
        """Takes one piece, or what it was `compressed` to; returns where it will start, counted from the end of
        the header.

        Pieces of one tensor that come one behind the other become one entry. Raises StoreError.
        """
        start = self.data_bytes
        last = self._runs[-1] if self._runs else None
        if last is None or not last.goes_on_with(piece, compressed):
            last = _Run(piece, start)
            self._runs.append(last)
        last.add(piece, compressed)
        if piece.data.nbytes:
            self._digests.append(digest)
        self.data_bytes += piece.data.nbytes if compressed is None else compressed.nbytes
        for data in (piece.data,) if compressed is None else compressed.parts:
            if self._held is not None:
                self._held.append(data)
            else:
                self._write(data)
        if self._held is not None and self.data_bytes > (_HOLD if compressed is None else _HOLD // 4):
            self._release(self._bound)
        return start

    def finish(self) -> WrittenPack:
        """Writes what is left and the header. The object is complete, and still to be committed.

        Raises StoreError; StateError where there are more tensors than a header can list.
        """
        header = self._header()
        if self._held is not None:
            size = -(-(len(header) + 8) // PAGE) * PAGE
            self._release(size)
        else:
            size = self._bound
        self._flush()
        if len(header) + 8 > size or size - 8 > HEADER_LIMIT:
            raise StateError(
                f"{len(self._runs)} tensors are more than the header of one pack can list: stack small ones",
                kind="too-many",
            )
        blank = (size - 8).to_bytes(8, "little") + header.ljust(size - 8)
        seal = digest_text(hashlib.sha256(blank).digest()).encode()
        sealed = blank[:SEAL_AT] + seal + blank[SEAL_AT + DIGEST_LENGTH :]
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
        self._sink.write(self._flushed, data)
        self._flushed += len(data)

    def _header(self) -> bytes:
        keys = _keys(self._runs)
        entries: dict[str, Any] = {}
        true: dict[str, list[Any]] = {}
        for key, run in zip(keys, self._runs, strict=True):
            stored = run.stored or TensorSpec("U8", (run.stored_length,))
            end = run.start + run.stored_length
            entries[key] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": [run.start, end]}
            if key != run.path or stored != run.spec:
                true[key] = run.true
        version = COMPRESSED_FORMAT if any(run.compressed for run in self._runs) else FORMAT
        metadata = {"ckpt.sha256": BLANK.decode(), "ckpt.format": str(version), **self._facts,
                    "ckpt.digests": " ".join(self._digests)}  # fmt: skip
        if true:
            metadata["ckpt.tensors"] = msgspec.json.encode(true).decode()
        header = msgspec.json.encode({"__metadata__": metadata, **entries})
        assert header.startswith(PREFIX)
        return header


def _keys(runs: Sequence[_Run]) -> list[str]:
    """The names under which plain safetensors readers find the runs: a whole tensor's is its path."""
    whole = [run.stored is not None for run in runs]
    taken = {"__metadata__"} | {run.path for run, is_whole in zip(runs, whole, strict=True) if is_whole}
    keys = []
    for run, is_whole in zip(runs, whole, strict=True):
        key = run.path
        if not is_whole or key == "__metadata__":
            base = f"{run.path}[{run.begin}:{run.begin + run.length}]{'.zstd' if run.compressed else ''}"
            key, n = base, 1
            while key in taken:
                n += 1
                key = f"{base}#{n}"
            taken.add(key)
        keys.append(key)
    return keys


def empty_piece(path: str, spec: TensorSpec) -> Piece:
    """The one piece of a tensor without bytes, so that plain safetensors readers see it too."""
    return Piece(path, spec, 0, np.empty(0, np.uint8))
