"""Chunks made smaller for a pack, where that pays: the bytes of their values grouped, then zstd.

The exponents of floating-point numbers resemble each other, their mantissas do not. So all first bytes of the
values stand together, then all second bytes, and so on; each such plane is compressed for itself, and one that
does not shrink stays as it is. `docs/format.md` describes what comes of it. Source of the idea: ZipNN
(https://arxiv.org/abs/2411.05239).
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ckpt_core.errors import CorruptionError, MissingExtraError
from ckpt_core.model import Buffer

__all__ = ["COMPRESSIONS", "EXPANSION", "Compressed", "Compression", "compress", "expand", "require"]

Compression = Literal["zstd"]
"""How chunks may be compressed."""

COMPRESSIONS: tuple[str, ...] = get_args(Compression)

EXPANSION = 1 << 15
"""Bytes that one stored byte can stand for at most: a block of zstd holds 128 KiB and takes 4 bytes or more."""

_LEAST = 4096  # shorter chunks are not worth the frames
_PAYS = 0.95  # what does not become this much smaller is kept as it is: quicker to read, and hardly larger
_LINE = 64  # what follows begins as well aligned as it would in a pack without anything compressed
_HEAD = struct.Struct("<IB3x")
_PLANES = (1, 2, 4, 8)
_WINDOW = 8 << 20  # what every decoder of zstd has to take, by RFC 8878

_own = threading.local()  # zstd's contexts are for one thread at a time


@dataclass(frozen=True, slots=True)
class Compressed:
    """A chunk as it goes into a pack: parts that stand one behind the other, `nbytes` in all."""

    parts: Sequence[Buffer]
    nbytes: int


def require() -> None:
    """Raises MissingExtraError where chunks cannot be compressed, or expanded, here."""
    _library()


def compress(data: Buffer, itemsize: int) -> Compressed | None:
    """A chunk of values of 1, 2, 4 or 8 bytes, compressed; None where that does not pay.

    Takes no more memory than the chunk has bytes, and two planes. Lets other threads run. Raises
    MissingExtraError.
    """
    if data.nbytes < _LEAST:
        return None
    planes = itemsize if data.nbytes % itemsize == 0 else 1
    compressor = _compressor(grouped=planes > 1)
    grouped = data.reshape(-1, planes)
    body: list[Buffer] = []
    for number in range(planes):
        plane = np.ascontiguousarray(grouped[:, number])
        frame = compressor.compress(plane.data)
        body.append(np.frombuffer(frame, np.uint8) if len(frame) <= _PAYS * plane.nbytes else plane)
    lengths = np.array([part.nbytes for part in body], "<u4").view(np.uint8)
    length = _HEAD.size + lengths.nbytes + sum(part.nbytes for part in body)
    padding = np.zeros(-length % _LINE, np.uint8)
    if length + padding.nbytes > _PAYS * data.nbytes:
        return None
    parts = [np.zeros(_HEAD.size, np.uint8), lengths, *body, padding]
    parts[0][4] = planes
    parts[0][:4] = np.frombuffer(_checksum(parts).to_bytes(4, "little"), np.uint8)
    return Compressed(parts, length + padding.nbytes)


def expand(stored: Buffer, out: Buffer) -> None:
    """Fills `out` with the chunk that `stored`, which is believed in nothing, was made of.

    Takes no more memory than `out` has bytes. That the bytes are those that were saved is for their digest to
    say. Raises CorruptionError, MissingExtraError.
    """
    if stored.nbytes < _HEAD.size:
        raise _fault("is too short")
    checksum, planes = _HEAD.unpack(stored[: _HEAD.size].tobytes())
    if checksum != _checksum([stored]):
        raise _fault("does not have the checksum that was written")
    if planes not in _PLANES or out.nbytes % planes:
        raise _fault("has an impossible number of planes")
    at = _HEAD.size + 4 * planes
    lengths = np.frombuffer(stored[_HEAD.size : at].tobytes().ljust(4 * planes, b"\0"), "<u4").tolist()
    end = at + sum(lengths)
    if stored.nbytes != end + -end % _LINE or stored[end:].any():
        raise _fault("has planes of other lengths than it says")
    grouped = out.reshape(-1, planes)
    for number, length in enumerate(lengths):
        plane = stored[at : at + length]
        grouped[:, number] = plane if length == grouped.shape[0] else _expanded(plane, grouped.shape[0])
        at += length


def _expanded(plane: Buffer, length: int) -> Buffer:
    """The bytes of a plane that must have so many of them: zstd makes room for what a frame claims."""
    library = _library()
    try:
        facts = library.get_frame_parameters(plane.data)
        if facts.content_size != length or facts.dict_id or facts.window_size > max(length, _WINDOW):
            raise _fault("has a plane that claims another size")
        data = _decompressor().decompress(plane.data, allow_extra_data=False)
    except library.ZstdError as error:
        raise _fault(f"has a plane that is not one of zstd ({error})") from error
    if len(data) != length:
        raise _fault("has a plane of another size than it claims")
    return np.frombuffer(data, np.uint8)


def _checksum(parts: Sequence[Buffer]) -> int:
    """CRC-32 of all but its own place. It finds what zstd would not notice, such as bits that it does not use."""
    value = 0
    for number, part in enumerate(parts):
        value = zlib.crc32((part[4:] if number == 0 else part).data, value)
    return value


def _compressor(*, grouped: bool) -> Any:
    """For planes one that looks for hardly any repetition, which is noise there: smaller and twice as quick."""
    name = "planes" if grouped else "bytes"
    if not hasattr(_own, name):
        library = _library()
        parameters = library.ZstdCompressionParameters(
            strategy=library.STRATEGY_FAST, min_match=7, hash_log=6, chain_log=6, search_log=1, window_log=17
        )
        options = {"compression_params": parameters} if grouped else {"level": 1}
        setattr(_own, name, library.ZstdCompressor(**options))
    return getattr(_own, name)


def _decompressor() -> Any:
    if not hasattr(_own, "decompressor"):
        _own.decompressor = _library().ZstdDecompressor(max_window_size=_WINDOW)
    return _own.decompressor


def _library() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError(
            "compressed chunks are written and read by zstandard: pip install 'ckpt-core[zstd]'", extra="zstd"
        ) from error
    return zstandard


def _fault(what: str) -> CorruptionError:
    return CorruptionError(f"a compressed chunk {what}", kind="compressed")
