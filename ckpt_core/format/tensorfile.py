"""Plain safetensors files, for and from other programs: written in one pass, read by mapping them into memory.

Packs are another matter (`pack`, `header`). Source of the format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import numpy as np

from ckpt_core.errors import CorruptionError, FormatError
from ckpt_core.model import Buffer, TensorSpec
from ckpt_core.tree import dtypes

__all__ = ["DTYPES", "TensorFile", "head_of", "map_tensors", "write_tensors"]

DTYPES = "ckpt.dtypes"
"""The metadata that tells the true types of what safetensors has no type for, which is written as bytes."""

Progress = Callable[[int, int], None]


class TensorFile(NamedTuple):
    """A file in memory: its metadata, and each tensor with its bytes, which are read when they are touched."""

    metadata: dict[str, str]
    tensors: dict[str, tuple[TensorSpec, Buffer]]


def write_tensors(
    out: BinaryIO,
    specs: Mapping[str, TensorSpec],
    pieces: Callable[[str], Iterable[Buffer]],
    metadata: Mapping[str, str],
    *,
    align: int = 8,
    progress: Progress | None = None,
) -> int:
    """Writes tensors one behind the other, each in `pieces` of its bytes; returns the file's bytes.

    The data begins at a multiple of `align`. None of the names is `__metadata__`, which the format keeps for itself.
    """
    head, order = head_of(specs, metadata, align=align)
    out.write(head)
    done, end = 0, sum(dtypes.nbytes(spec) for spec in specs.values())
    for name in order:
        for data in pieces(name):
            out.write(data.data)
            done += data.nbytes
            if progress is not None:
                progress(done, end)
    return len(head) + end


def head_of(
    specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], *, align: int = 8
) -> tuple[bytes, list[str]]:
    """What stands before the data of a file, and the order in which the tensors then follow without a gap."""
    order = sorted(specs, key=lambda name: -dtypes.alignment(dtypes.stored_as(specs[name]).dtype))
    header: dict[str, Any] = {}
    strange: dict[str, Any] = {}
    end = 0
    for name in order:
        spec = specs[name]
        stored = dtypes.stored_as(spec)
        begin, end = end, end + dtypes.nbytes(spec)
        header[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": [begin, end]}
        if stored != spec:
            strange[name] = {"dtype": spec.dtype, "shape": spec.shape}
    facts = dict(metadata) | ({DTYPES: json.dumps(strange)} if strange else {})
    text = json.dumps({"__metadata__": facts, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-(len(text) + 8) // align) * align - 8)
    return len(text).to_bytes(8, "little") + text, order


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _True(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]


def map_tensors(path: Path) -> TensorFile:
    """A file mapped into memory: its pages are the caller's own, and writing to them does not change the file.

    Raises CorruptionError for what safetensors itself refuses, FormatError for a type that is not known here.
    """
    from safetensors import SafetensorError, safe_open

    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise CorruptionError(f"{path} is no file", kind="document", path=str(path))
    try:
        with safe_open(path, "np"):  # it checks sizes, offsets and the header against each other
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            rows = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
            size = os.fstat(file.fileno()).st_size - 8 - length
        metadata = msgspec.json.decode(rows.pop("__metadata__", b"{}"), type=dict[str, str])
        strange = msgspec.json.decode(metadata.get(DTYPES, "{}"), type=dict[str, _True])
        entries = {name: msgspec.json.decode(row, type=_Entry) for name, row in rows.items()}
    except (SafetensorError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptionError(
            f"{path} is no safetensors file, or a damaged one: {error}", kind="document", path=str(path)
        ) from error
    data = np.memmap(path, np.uint8, "c", 8 + length, (size,)) if size else np.empty(0, np.uint8)
    return TensorFile(
        metadata, {name: _mapped(name, entry, strange.get(name), data) for name, entry in entries.items()}
    )


def _mapped(name: str, entry: _Entry, true: _True | None, data: Buffer) -> tuple[TensorSpec, Buffer]:
    begin, end = entry.data_offsets
    stored = TensorSpec(entry.dtype, entry.shape)
    if stored.dtype not in dtypes.SAFETENSORS_BITS:
        raise FormatError(
            f"{name!r} is of the type {entry.dtype!a}, which is not known here: upgrade ckpt-core"
        )
    spec = stored if true is None else TensorSpec(true.dtype, true.shape)
    fits = 0 <= begin <= end <= data.nbytes and min((0, *spec.shape)) >= 0
    if not fits or dtypes.nbytes(spec) != end - begin or dtypes.stored_as(spec).dtype != entry.dtype:
        raise CorruptionError(f"the tensor {name!r} does not fill its place in the file", kind="document")
    return spec, np.asarray(data[begin:end])
