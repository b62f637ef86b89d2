"""Parity of a pack: an erasure-coded sidecar from which a burst of damage in the pack is healed.

The pack is split into `data_blocks` equal runs of bytes; `parity_blocks` blocks of the same size are computed
over them, row by row of small cells, by the Reed-Solomon code of zfec
(https://github.com/tahoe-lafs/zfec: k primary shares, then m parity shares, over GF(2^8)). A digest of every
cell tells which are damaged, so of the cells of one row as many may be lost as there are parity blocks. The
document that says all this stands at the beginning and at the end of the sidecar.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ckpt_core.errors import CorruptionError, FormatError, MissingExtraError
from ckpt_core.format.documents import ParityDocument
from ckpt_core.format.sealed import seal, unseal
from ckpt_core.model import Buffer

__all__ = [
    "CELL_DIGEST",
    "Parity",
    "Rebuilt",
    "Shape",
    "Write",
    "encode",
    "faulty_cells",
    "read_parity",
    "rebuild",
    "require",
    "shape_for",
]

CELL_DIGEST = 16
"""Bytes of a cell's SHA-256 that are kept: they find damage; what is healed is proved by the digests of chunks."""

_BLOCKS = 64
_LEAST_BLOCK = 512
_LEAST_CELL, _MOST_CELL = 4096, 256 << 10
_LENGTH = 8
_LIMIT = 1 << 28
_SHARES = 256

Read = Callable[[int, int], Buffer]
"""`read(offset, length)`: bytes of an object, fewer where it ends."""
Write = Callable[[int, Buffer], object]


class Shape(NamedTuple):
    """How a pack is cut: blocks of data and of parity, the bytes of a block, and of a cell of it."""

    data_blocks: int
    parity_blocks: int
    block_bytes: int
    cell_bytes: int

    @property
    def rows(self) -> int:
        """Cells of a block, the last of which may be shorter."""
        return -(-self.block_bytes // self.cell_bytes)

    @property
    def shares(self) -> int:
        return self.data_blocks + self.parity_blocks

    def row(self, number: int) -> tuple[int, int]:
        """Where the cells of a row begin in their blocks, and their length."""
        begin = number * self.cell_bytes
        return begin, min(self.cell_bytes, self.block_bytes - begin)

    @classmethod
    def of(cls, document: ParityDocument) -> Shape:
        return cls(document.data_blocks, document.parity_blocks, document.block_bytes, document.cell_bytes)


@dataclass(frozen=True, slots=True)
class Parity:
    """A sidecar as it was read: its document, where its blocks begin, the digests of the cells."""

    document: ParityDocument
    begin: int
    cells: bytes
    intact: bool
    """Whether both copies of the document are what was written, and the size is right."""

    def digest(self, row: int, share: int) -> bytes:
        """What the digest of a cell should be."""
        at = (row * Shape.of(self.document).shares + share) * CELL_DIGEST
        return self.cells[at : at + CELL_DIGEST]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild met: damaged cells of the pack and of the sidecar, and the bytes that stay lost."""

    damaged: int
    damaged_parity: int
    lost_bytes: int


def require() -> Any:
    """The module that does the arithmetic. Raises MissingExtraError."""
    try:
        import zfec
    except ImportError as error:
        raise MissingExtraError(
            "parity is computed by zfec, which is not installed: pip install 'ckpt-core[parity]'",
            extra="parity",
        ) from error
    return zfec


def shape_for(size: int, percent: int) -> Shape:
    """How a pack of `size` bytes is cut so that a burst of `percent` of it, wherever it lies, can be healed."""
    blocks = min(_BLOCKS, max(1, -(-size // _LEAST_BLOCK)))
    block = -(-size // blocks)
    cell = min(block, _MOST_CELL, max(_LEAST_CELL, -(-block // 256 // _LEAST_CELL) * _LEAST_CELL))
    burst = -(-size * percent // 100)
    # A run of `burst` bytes meets at most so many of the cells of a row, which lie `block` bytes apart.
    parity = min(blocks, (burst + cell - 2) // block + 1)
    return Shape(blocks, max(parity, 1), block, cell)


def encode(read: Read, size: int, write: Write, *, pack: str, header: str, percent: int) -> int:
    """Writes the sidecar of an intact pack of `size` bytes; returns the sidecar's size. A few MiB of memory.

    `header` is the digest of the pack's header. Raises MissingExtraError, and what `read` and `write` raise.
    """
    shape = shape_for(size, percent)
    encoder = require().Encoder(shape.data_blocks, shape.shares)
    parity_numbers = list(range(shape.data_blocks, shape.shares))
    facts = {"pack": pack, "size": size, "header": header, "percent": percent, **shape._asdict()}
    cells = bytearray(shape.rows * shape.shares * CELL_DIGEST)
    begin = _LENGTH + len(seal(ParityDocument(cells=_text(cells), **facts)))
    for row in range(shape.rows):
        at, length = shape.row(row)
        data = [_data(read, shape, size, block, at, length) for block in range(shape.data_blocks)]
        parity = [np.frombuffer(each, np.uint8) for each in encoder.encode(data, parity_numbers)]
        for number, each in enumerate(parity):
            write(begin + number * shape.block_bytes + at, each)
        digests = b"".join(_digest(each) for each in (*data, *parity))
        cells[row * len(digests) : (row + 1) * len(digests)] = digests
    document = seal(ParityDocument(cells=_text(cells), **facts))
    prefix = len(document).to_bytes(_LENGTH, "little")
    write(0, np.frombuffer(prefix + document, np.uint8))
    end = begin + shape.parity_blocks * shape.block_bytes
    write(end, np.frombuffer(document + prefix, np.uint8))
    return end + len(document) + _LENGTH


def read_parity(read: Read, size: int, where: str) -> Parity:
    """A sidecar of `size` bytes by the first copy of its document that is intact.

    Raises CorruptionError where neither is; FormatError for one that this version cannot read.
    """
    found: list[bytes | None] = [_copy(read, size, 0, _LENGTH), _copy(read, size, max(size - _LENGTH, 0), -1)]
    error: CorruptionError | None = None
    for data in found:
        if data is None:
            continue
        try:
            parity = _parsed(data, where)
        except CorruptionError as damage:
            error = error or damage
            continue
        shape = Shape.of(parity.document)
        whole = 2 * parity.begin + shape.parity_blocks * shape.block_bytes
        intact = found[0] == found[1] and whole == size
        return Parity(parity.document, parity.begin, parity.cells, intact)
    raise error or CorruptionError(
        f"{where} is damaged: it is too short to be a sidecar", kind="parity", key=where
    )


def rebuild(read: Read, read_side: Read, parity: Parity, write: Write | None) -> Rebuilt:
    """Writes the pack with every cell healed that can be, in no order of offsets; None only counts.

    Bytes that stay lost are written as they were read. A few MiB of memory. What comes out is to be checked
    by the digests of its chunks. `read` gives zeros for what cannot be read. Raises MissingExtraError.
    """
    document, shape = parity.document, Shape.of(parity.document)
    decoder = require().Decoder(shape.data_blocks, shape.shares)
    damaged = damaged_parity = lost_bytes = 0
    for row in range(shape.rows):
        at, length = shape.row(row)
        cells = [_data(read, shape, document.size, block, at, length) for block in range(shape.data_blocks)]
        good = {share: cell for share, cell in enumerate(cells) if _digest(cell) == parity.digest(row, share)}
        lost = [share for share in range(shape.data_blocks) if share not in good]
        damaged += len(lost)
        for number in range(shape.parity_blocks):
            cell = read_side(parity.begin + number * shape.block_bytes + at, length)
            share = shape.data_blocks + number
            if cell.nbytes == length and _digest(cell) == parity.digest(row, share):
                good[share] = cell
            else:
                damaged_parity += 1
        if lost and len(good) >= shape.data_blocks:
            chosen = sorted(good)[: shape.data_blocks]
            healed = decoder.decode([good[share] for share in chosen], chosen)
            for share in lost:
                cells[share] = np.frombuffer(healed[share], np.uint8)
        elif lost:
            lost_bytes += sum(max(0, _length(shape, document.size, block, at, length)) for block in lost)
        for block, cell in enumerate(cells) if write is not None else ():
            kept = _length(shape, document.size, block, at, length)
            if kept > 0 and write is not None:
                write(block * shape.block_bytes + at, cell[:kept])
    return Rebuilt(damaged, damaged_parity, lost_bytes)


def faulty_cells(read_side: Read, parity: Parity) -> Iterator[int]:
    """Offsets of the cells of a sidecar that are not what was written."""
    shape = Shape.of(parity.document)
    for number in range(shape.parity_blocks):
        for row in range(shape.rows):
            at, length = shape.row(row)
            offset = parity.begin + number * shape.block_bytes + at
            if _digest(read_side(offset, length)) != parity.digest(row, shape.data_blocks + number):
                yield offset


def _length(shape: Shape, size: int, block: int, at: int, length: int) -> int:
    """How many bytes of a cell are the pack's; the rest is padding."""
    return min(length, size - block * shape.block_bytes - at)


def _data(read: Read, shape: Shape, size: int, block: int, at: int, length: int) -> Buffer:
    kept = _length(shape, size, block, at, length)
    if kept == length:
        found = read(block * shape.block_bytes + at, length)
        if found.nbytes == length:
            return np.ascontiguousarray(found)
        kept = length
    cell = np.zeros(length, np.uint8)
    if kept > 0:
        found = read(block * shape.block_bytes + at, kept)
        cell[: found.nbytes] = found
    return cell


def _digest(cell: Buffer) -> bytes:
    return hashlib.sha256(cell.data).digest()[:CELL_DIGEST]


def _text(cells: bytes | bytearray) -> str:
    return base64.b64encode(cells).decode()


def _copy(read: Read, size: int, at: int, begin: int) -> bytes | None:
    """One copy of the document: behind its length at the beginning, or before it at the end (`begin` < 0)."""
    raw = read(at, _LENGTH).tobytes()
    length = int.from_bytes(raw, "little")
    if len(raw) < _LENGTH or not 0 < length <= min(size - 2 * _LENGTH, _LIMIT):
        return None
    return read(begin if begin >= 0 else at - length, length).tobytes()


def _parsed(data: bytes, where: str) -> Parity:
    document = unseal(data, ParityDocument, where)
    shape = Shape.of(document)
    try:
        cells = base64.b64decode(document.cells, validate=True)
    except ValueError:
        cells = b""
    if shape.shares > _SHARES:
        raise FormatError(f"{where} has {shape.shares} blocks, over {_SHARES}: upgrade ckpt-core", key=where)
    if (
        len(cells) != shape.rows * shape.shares * CELL_DIGEST
        or shape.block_bytes * shape.data_blocks < document.size
        or shape.cell_bytes > min(shape.block_bytes, _MOST_CELL)
    ):
        raise CorruptionError(f"{where} is damaged: it contradicts itself", kind="parity", key=where)
    return Parity(document, _LENGTH + len(data), cells, False)
