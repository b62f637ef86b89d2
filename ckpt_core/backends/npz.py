"""The backend `npz`: the tensors by path as numpy's own archive, and what is no tensor as text in an array of bytes.

Archives come from anywhere: nothing is unpickled or extracted, and no member is believed to be as large as it says.
"""

from __future__ import annotations

import math
import mmap
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from ckpt_core.backends.contract import StorageBackend
from ckpt_core.backends.parts import STRUCTURE, aliases, on_device, put_together, take_apart
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
        for info in archive.infolist():
            name = info.filename
            if not name.endswith(_MEMBER):
                raise CorruptionError(
                    f"{path} holds {name!a}, which is no array", kind="document", path=str(path)
                )
            if info.file_size > info.compress_size * _EXPANSION:
                raise CorruptionError(f"{name!a} claims to expand to {info.file_size} bytes", kind="size")
            with archive.open(info) as member:
                shape, dtype, fortran = _header(member, name)
                header = member.tell()
                if header + math.prod(shape) * dtype.itemsize != info.file_size:
                    raise CorruptionError(f"{name!a} of {path} is not as long as it says", kind="size")
                if mapped and info.compress_type == zipfile.ZIP_STORED and info.file_size > header:
                    data = _mapped(path, info, header)
                else:
                    data = _filled(member, info.file_size - header, spill=mapped)
            flat = np.ndarray((math.prod(shape),), dtype, buffer=data.data)
            yield name.removesuffix(_MEMBER), flat.reshape(shape, order="F" if fortran else "C")


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


def _mapped(path: Path, info: zipfile.ZipInfo, header: int) -> Array:
    """The data of a member as it lies in the file, checked against the archive's own checksum."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        local = file.read(_LOCAL)
        begin = info.header_offset + _LOCAL + int.from_bytes(local[26:28], "little")
        begin += int.from_bytes(local[28:30], "little")
        whole = np.memmap(file, np.uint8, "c", begin, (info.file_size,))
    crc = 0
    for at in range(0, info.file_size, _PIECE):
        crc = zlib.crc32(whole[at : at + _PIECE].data, crc)
    if crc != info.CRC:
        raise CorruptionError(f"{info.filename!a} of {path} does not match its checksum", kind="digest")
    return np.asarray(whole[header:])


def _filled(member: IO[bytes], size: int, *, spill: bool) -> Array:
    """What is left of a member, in memory, or (spilled) in a file that is gone when nobody uses it."""
    if spill and size:
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            out = np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)
    else:
        out = np.empty(size, np.uint8)
    for at in range(0, size, _PIECE):
        piece = member.read(min(_PIECE, size - at))
        out[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        if len(piece) != min(_PIECE, size - at):
            raise CorruptionError("an array ends before its data does", kind="truncated")
    if member.read(1):
        raise CorruptionError("an array goes on behind its data", kind="size")
    return out
