"""The backend `npz`: the tensors by path as numpy's own archive, and what is no tensor as text in an array of bytes.

Archives come from anywhere: nothing is unpickled or extracted, and no member is believed to be as large as it says.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from ckpt_core.backends.contract import StorageBackend
from ckpt_core.backends.parts import STRUCTURE, aliases, on_device, put_together, take_apart
from ckpt_core.backends.room import room_for
from ckpt_core.errors import CorruptionError, FormatError
from ckpt_core.tree import borrow, flatten, registry

__all__ = ["NpzBackend"]

Array = np.ndarray[Any, Any]

_EXPANSION = 1032  # what deflate can make of a byte at the most
_MEMBER = ".npy"
_LOCAL = 30  # bytes of a member's own header before its name
_PIECE = 8 << 20
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    ValueError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
)
"""What zipfile and numpy raise on damaged bytes; the last two where a header is no literal of Python."""


class NpzBackend(StorageBackend):
    """An uncompressed `.npz` that `np.load` reads. Types that numpy lacks, as bfloat16, stand as unsigned integers of
    the same bits."""

    name = "npz"
    suffix: ClassVar[str] = ".npz"

    def save_checkpoint(self, data: Any, path: Path) -> dict[str, Any]:
        arrays, structure = take_apart(data)
        snapshot, names = borrow(flatten(data, registry)), list(arrays)
        arrays |= {name: arrays[names[index]] for name, index in aliases(snapshot, names).items()}
        arrays[STRUCTURE] = np.frombuffer(structure.encode(), np.uint8)
        with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, array in arrays.items():
                with archive.open(zipfile.ZipInfo(name + _MEMBER), "w", force_zip64=True) as out:
                    np.lib.format.write_array(out, _plain(array), allow_pickle=False)
        return {}

    def load_checkpoint(self, path: Path, device: str | None = None) -> Any:
        return on_device(_read(path, mapped=False), device)

    def view_checkpoint(self, path: Path) -> Any:
        return _read(path, mapped=True)


def _plain(array: Array) -> Array:
    """The array in a type of numpy's own."""
    return (
        array.view(f"<u{array.dtype.itemsize}") if type(array.dtype).__module__ != "numpy.dtypes" else array
    )


def _read(path: Path, *, mapped: bool) -> Any:
    try:
        arrays = dict(_members(path, mapped=mapped))
    except _DAMAGE as error:
        if isinstance(error, (CorruptionError, FormatError)):
            raise
        raise CorruptionError(
            f"{path} is no .npz archive, or a damaged one: {error}", kind="document"
        ) from error
    structure = arrays.pop(STRUCTURE, None)
    return arrays if structure is None else put_together(arrays, structure.tobytes().decode(errors="replace"))


def _members(path: Path, *, mapped: bool) -> Iterator[tuple[str, Array]]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check(path, members)
        lying = {info for info in members if mapped and info.compress_type == zipfile.ZIP_STORED}
        whole = np.asarray(np.memmap(path, np.uint8, "c")) if lying else np.empty(0, np.uint8)
        others = [info.file_size for info in members if info not in lying]
        room = iter(room_for(others)) if mapped else (np.empty(size, np.uint8) for size in others)
        for info in members:
            name = info.filename
            with archive.open(info) as member:
                shape, dtype, fortran = _header(member, name)
                header = member.tell()
                if header + math.prod(shape) * dtype.itemsize != info.file_size:
                    raise CorruptionError(f"{name!a} of {path} is not as long as it says", kind="size")
                if info in lying:
                    data = _lying(path, whole, info)[header:]
                else:
                    data = _filled(member, next(room)[: info.file_size - header])
            flat = np.ndarray((math.prod(shape),), dtype, buffer=data.data)
            yield name.removesuffix(_MEMBER), flat.reshape(shape, order="F" if fortran else "C")


def _check(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """That they are arrays by name, and as large as they can be at most."""
    for info in members:
        if not info.filename.endswith(_MEMBER):
            raise CorruptionError(
                f"{path} holds {info.filename!a}, which is no array", kind="document", path=str(path)
            )
        if info.file_size > info.compress_size * _EXPANSION:
            raise CorruptionError(
                f"{info.filename!a} claims to expand to {info.file_size} bytes", kind="size"
            )
    if sum(info.compress_size for info in members) > path.stat().st_size:
        raise CorruptionError(f"the arrays in {path} claim more bytes than it has", kind="size")


def _header(member: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    version = np.lib.format.read_magic(member)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
        version
    )
    if read is None:
        raise FormatError(
            f"{name!a} is of version {version} of numpy's format, which is not read here", kind="newer"
        )
    shape, fortran, dtype = read(member)
    if dtype.hasobject:
        raise FormatError(
            f"{name!a} holds Python objects, which could only be unpickled: save it as numbers", kind="pickle"
        )
    if any(type(length) is not int or length < 0 for length in shape) or len(shape) > 64:
        raise CorruptionError(f"{name!a} has an impossible shape", kind="document")
    return shape, dtype, fortran


def _lying(path: Path, whole: Array, info: zipfile.ZipInfo) -> Array:
    """A member as it lies in the file, checked against the archive's own checksum."""
    begin = info.header_offset + _LOCAL
    local = whole[info.header_offset : begin].tobytes()
    begin += int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    member = whole[begin : begin + info.file_size]
    crc = 0
    for at in range(0, member.nbytes, _PIECE):
        crc = zlib.crc32(member[at : at + _PIECE].data, crc)
    if crc != info.CRC or member.nbytes != info.file_size:
        raise CorruptionError(f"{info.filename!a} of {path} does not match its checksum", kind="digest")
    return member


def _filled(member: IO[bytes], out: Array) -> Array:
    """What is left of a member, read in pieces."""
    for at in range(0, out.nbytes, _PIECE):
        wanted = out[at : at + _PIECE]
        piece = member.read(wanted.nbytes)
        if len(piece) != wanted.nbytes:
            raise CorruptionError("an array ends before its data does", kind="truncated")
        wanted[:] = np.frombuffer(piece, np.uint8)
    if member.read(1):
        raise CorruptionError("an array goes on behind its data", kind="size")
    return out
