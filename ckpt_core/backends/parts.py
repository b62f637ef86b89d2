"""A state as arrays by name and one text, and back: what a backend needs that can write arrays and nothing else.

The text is JSON: the tree as `docs/format.md` describes it, and what each array is. Nothing in it is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np

from ckpt_core.errors import CkptError, CorruptionError, FormatError
from ckpt_core.model import Buffer, Snapshot, StagedTensor, TensorSpec
from ckpt_core.tree import (
    UnsupportedValueError,
    backend_files,
    borrow,
    check_tree,
    dtypes,
    flatten,
    rebuild,
    registry,
    tensor_paths,
)

__all__ = [
    "STRUCTURE",
    "aliases",
    "described",
    "differing",
    "names_of",
    "on_device",
    "put_together",
    "rebuilt",
    "take_apart",
]

STRUCTURE = "ckpt.structure"
"""Under which name the backends of this package write the text."""

_VERSION = 1
_MOST_AXES = 64
_PIECE = 8 << 20
_RESERVED = ("", "__metadata__", STRUCTURE)


class _Part(msgspec.Struct, array_like=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str


class _Structure(msgspec.Struct, kw_only=True):
    version: int = _VERSION
    tree: Any
    tensors: tuple[_Part, ...]


def take_apart(data: Any) -> tuple[dict[str, np.ndarray[Any, Any]], str]:
    """The tensors of a state as numpy arrays by path, and a text that says how to put them together.

    The arrays are views where that can be, and tied tensors are one. Types that numpy lacks come as ml_dtypes has
    them, or as plain bytes. Raises StateError.
    """
    snapshot = borrow(flatten(data, registry))
    names = names_of(snapshot)
    arrays = {name: _as_array(tensor) for name, tensor in zip(names, snapshot.tensors, strict=True)}
    return arrays, described(snapshot, names)


def put_together(arrays: Mapping[str, np.ndarray[Any, Any]], structure: str) -> Any:
    """The state of what `take_apart` gave. Only the bytes of the arrays count, not their types.

    An array that can be written to becomes part of the state. Each is asked for once. Raises CorruptionError where
    they do not fit the text, FormatError for what this version does not read, MissingExtraError.
    """

    def read(name: str, spec: TensorSpec) -> Buffer:
        array = np.ascontiguousarray(arrays[name])
        data = array.reshape(-1).view(np.uint8) if array.size else np.empty(0, np.uint8)
        return data if data.flags.writeable else data.copy()

    return rebuilt(structure, read)


def differing(found: Any, expected: Any) -> list[str]:
    """The paths of tensors that two states do not have alike: type, shape, and every byte."""
    one, other = _tensors(found), _tensors(expected)
    return [path for path in one.keys() | other.keys() if not _alike(one.get(path), other.get(path))]


def _tensors(state: Any) -> dict[str, StagedTensor]:
    snapshot = borrow(flatten(state, registry))
    return {path: snapshot.tensors[index] for path, index in tensor_paths(snapshot.tree).items()}


def _alike(one: StagedTensor | None, other: StagedTensor | None) -> bool:
    if one is None or other is None or one.spec != other.spec:
        return False
    pieces = range(0, one.data.nbytes, _PIECE)
    return all(np.array_equal(one.data[at : at + _PIECE], other.data[at : at + _PIECE]) for at in pieces)


def names_of(snapshot: Snapshot) -> list[str]:
    """A name for each tensor: its path, but for what formats keep for themselves."""
    taken = {*_RESERVED, *(tensor.path for tensor in snapshot.tensors)}
    names = []
    for tensor in snapshot.tensors:
        name = tensor.path
        if name in _RESERVED:
            number = 2
            while (name := f"{tensor.path}#{number}") in taken:
                number += 1
            taken.add(name)
        names.append(name)
    return names


def aliases(snapshot: Snapshot, names: list[str]) -> dict[str, int]:
    """The further names of tied tensors, under which other programs look for them, with the tensor of each."""
    paths = tensor_paths(snapshot.tree).items()
    return {path: index for path, index in paths if path not in names and path not in _RESERVED}


def described(snapshot: Snapshot, names: list[str]) -> str:
    """The text to a snapshot whose tensors are written under these names."""
    tensors = zip(names, snapshot.tensors, strict=True)
    parts = tuple(_Part(name, each.spec.dtype, each.spec.shape, each.kind) for name, each in tensors)
    return msgspec.json.encode(_Structure(tree=snapshot.tree, tensors=parts)).decode()


def rebuilt(structure: str, read: Callable[[str, TensorSpec], Buffer]) -> Any:
    """The state of a text, whose tensors' bytes `read(name, spec)` gives. Raises as `put_together`."""
    found = _parsed(structure)
    values: dict[int, Any] = {}

    def get(index: int, target: Any) -> Any:
        if index not in values:
            values[index] = _value(found.tensors[index], read)
        return values[index]

    return rebuild(found.tree, get, registry)


def on_device(value: Any, device: str | None) -> Any:
    """A state whose tensors are where `device` says, if they are of a framework that has `tensor.to(device)`."""
    if device is None:
        return value
    if isinstance(value, dict):
        return {key: on_device(item, device) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(on_device(item, device) for item in value)
    return value.to(device) if hasattr(value, "to") and not isinstance(value, np.ndarray) else value


def _parsed(structure: str) -> _Structure:
    try:
        found = msgspec.json.decode(structure, type=_Structure)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise CorruptionError(
            f"the structure of the state cannot be read: {error}", kind="document"
        ) from error
    if found.version > _VERSION:
        raise FormatError("the structure of the state is of a newer version: upgrade ckpt-core")
    check_tree(found.tree, len(found.tensors))
    if backend_files(found.tree) is not None:
        raise FormatError("the structure of the state holds files in place of a state", kind="tree")
    return found


def _value(part: _Part, read: Callable[[str, TensorSpec], Buffer]) -> Any:
    spec = TensorSpec(part.dtype, part.shape)
    if len(part.shape) > _MOST_AXES or min((0, *part.shape)) < 0 or len(part.dtype) > 64:
        raise CorruptionError(f"{part.name!r} has an impossible shape", kind="document")
    try:
        data = read(part.name, spec)
    except KeyError:
        raise CorruptionError(f"there is no tensor {part.name!r}", kind="missing") from None
    if dtypes.nbytes(spec) != data.nbytes:
        raise CorruptionError(
            f"{part.name!r} has {data.nbytes} bytes, not the {dtypes.nbytes(spec)} of {spec.dtype} "
            f"{list(spec.shape)}",
            kind="document",
        )
    try:
        return registry.tensor_named(part.kind).wrap(spec, data)
    except UnsupportedValueError as error:
        raise FormatError(f"{part.name!r} cannot be held here: {error}", kind="dtype") from error


def _as_array(tensor: StagedTensor) -> np.ndarray[Any, Any]:
    spec, data = tensor.spec, tensor.data
    try:
        dtype = None if spec.dtype == "F4" else dtypes.numpy_dtype(spec.dtype)
    except CkptError:
        dtype = None
    return data if dtype is None else np.ndarray(spec.shape, dtype, buffer=data.data)
