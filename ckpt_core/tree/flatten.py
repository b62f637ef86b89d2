"""From a state to its tree (plain values inline; see `nodes`) and its tensors in a list."""

from __future__ import annotations

import base64
import dataclasses
import enum
import math
import struct
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckpt_core.errors import StateError
from ckpt_core.model import Snapshot, StagedTensor, TensorSpec
from ckpt_core.tree import dtypes
from ckpt_core.tree.codecs import (
    CodecRegistry,
    ObjectCodec,
    StructureCodec,
    TensorCodec,
    UnsupportedValueError,
)
from ckpt_core.tree.nodes import INLINE_BYTES, MAX_DEPTH, base_value, child_path, key_component

__all__ = ["Flat", "Leaf", "borrow", "flatten"]

_INT64 = 1 << 63


@dataclass(frozen=True, slots=True)
class Leaf:
    """One tensor of a state: where it stands, the live object, and the codec that reads it."""

    path: str
    value: Any
    codec: TensorCodec
    spec: TensorSpec


@dataclass(frozen=True, slots=True)
class Flat:
    """A state taken apart. `tree` names the tensors by their index in `leaves`."""

    tree: Any
    leaves: tuple[Leaf, ...]


def flatten(state: Any, registry: CodecRegistry) -> Flat:
    """Takes a state apart without copying a tensor. Raises StateError, which names the path."""
    flattener = _Flattener(registry)
    return Flat(flattener.node(None, state), tuple(flattener.leaves))


def borrow(flat: Flat) -> Snapshot:
    """A snapshot over the live tensors themselves, for a caller that waits until it is written.

    Only tensors that are not contiguous in host memory are copied.
    """
    staged = []
    for leaf in flat.leaves:
        data = leaf.codec.view(leaf.value)
        if data is None:
            data = np.empty(dtypes.nbytes(leaf.spec), np.uint8)
            leaf.codec.copy_into(leaf.value, data)
        staged.append(StagedTensor(leaf.path, leaf.codec.name, leaf.spec, data))
    return Snapshot(flat.tree, tuple(staged))


class _Flattener:
    def __init__(self, registry: CodecRegistry) -> None:
        self.leaves: list[Leaf] = []
        self._registry = registry
        self._codecs: dict[type, TensorCodec | ObjectCodec | None] = {}
        self._index: dict[Hashable, int] = {}
        self._paths: set[str] = set()
        self._open: list[int] = []

    def node(self, path: str | None, value: Any) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is int:
            return value if -_INT64 <= value < _INT64 else {"$int": hex(value)}
        if kind is float:
            return _float(value)
        if kind is str:
            return self._text(path, value)
        if isinstance(value, (Mapping, list, tuple)):
            codec = None if kind in (dict, list, tuple) else self._find(kind)
            return self._coded(path, value) if codec is not None else self._container(path, value)
        if kind is complex:
            return {"$complex": [_float(value.real), _float(value.imag)]}
        if kind is bytes and len(value) <= INLINE_BYTES:
            return {"$bytes": base64.b64encode(value).decode()}
        return self._coded(path, value)

    def _container(self, path: str | None, value: Any) -> Any:
        self._enter(path, value)
        try:
            if isinstance(value, Mapping):
                return self._mapping(path, value)
            fields = getattr(value, "_fields", None)
            if isinstance(value, tuple) and isinstance(fields, tuple):
                items = {name: self.node(child_path(path, name), getattr(value, name)) for name in fields}
                return {"$namedtuple": {"name": type(value).__name__, "fields": items}}
            members = [self.node(child_path(path, str(i)), item) for i, item in enumerate(value)]
            return {"$tuple": members} if isinstance(value, tuple) else members
        finally:
            self._open.pop()

    def _enter(self, path: str | None, value: Any) -> None:
        if id(value) in self._open:
            raise StateError(f"the state contains itself at {_shown(path)}", kind="cycle", path=path)
        if len(self._open) >= MAX_DEPTH:
            raise StateError(
                f"the state is nested over {MAX_DEPTH} levels deep at {_shown(path)}: save it flatter",
                kind="depth",
                path=path,
            )
        self._open.append(id(value))

    def _mapping(self, path: str | None, value: Mapping[Any, Any]) -> Any:
        plain = True
        seen: dict[str, Any] = {}
        keys: list[Any] = []
        items: list[Any] = []
        for key, item in value.items():
            component = key_component(key)
            if seen.setdefault(component, key) is not key:
                raise StateError(
                    f"keys {seen[component]!r} and {key!r} of the dict at {_shown(path)} give the same path",
                    kind="key",
                    path=path,
                )
            if type(key) is str and key.isascii():  # nearly all of them
                keys.append(key)
                plain = plain and key[:1] != "$"
            else:
                keys.append(self._key(path, key))
                plain = plain and type(keys[-1]) is str and keys[-1][:1] != "$"
            items.append(self.node(component if path is None else f"{path}/{component}", item))
        if plain:
            return dict(zip(keys, items, strict=True))
        return {"$dict": [list(row) for row in zip(keys, items, strict=True)]}

    def _key(self, path: str | None, key: Any) -> Any:
        if isinstance(key, enum.Enum) or not isinstance(key, (str, int, float, bool, type(None))):
            raise StateError(
                f"a dict at {_shown(path)} has a key of type {type(key).__name__}; "
                "keys may be strings, numbers, booleans or None: convert it before saving",
                kind="key",
                path=path,
            )
        return self.node(path, base_value(key))

    def _text(self, path: str | None, value: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise StateError(
                f"the text at {_shown(path)} is not valid Unicode (a lone surrogate); save it as bytes",
                kind="text",
                path=path,
            ) from None
        return value

    def _coded(self, path: str | None, value: Any) -> Any:
        codec = self._find(np.generic if isinstance(value, np.generic) else type(value))
        try:
            if isinstance(codec, ObjectCodec):
                return self._object(path, value, codec)
            if codec is not None:
                return {"$tensor": self._tensor(path, value, codec)}
            structure = self._registry.structure(type(value))
            if structure is not None:
                return self._structure(path, value, structure)
        except UnsupportedValueError as error:
            raise StateError(f"cannot save {_shown(path)}: {error}", kind="unsupported", path=path) from None
        base = base_value(value)
        if type(base) is not type(value):
            return self.node(path, base)
        raise StateError(_no_codec(path, value), kind="no-codec", path=path, type=type(value).__name__)

    def _find(self, kind: type) -> TensorCodec | ObjectCodec | None:
        """The codec of a type, which the registry is asked for once."""
        try:
            return self._codecs[kind]
        except KeyError:
            return self._codecs.setdefault(kind, self._registry.find(kind))

    def _object(self, path: str | None, value: Any, codec: ObjectCodec) -> Any:
        self._enter(path, value)
        try:
            return {"$object": {"codec": codec.name, "value": self.node(path, codec.encode(value))}}
        finally:
            self._open.pop()

    def _structure(self, path: str | None, value: Any, codec: StructureCodec) -> Any:
        self._enter(path, value)
        try:
            return self.node(path, dict(codec.members(value)))
        finally:
            self._open.pop()

    def _tensor(self, path: str | None, value: Any, codec: TensorCodec) -> int:
        spec = codec.spec(value)
        identity = (codec.name, spec, codec.identity(value))
        index = self._index.get(identity)
        if index is None:
            where = path if path is not None else ""
            if where in self._paths:  # only an object codec could hide two tensors behind one path
                raise StateError(
                    f"two tensors at {_shown(path)}: let the codec return a dict", kind="path", path=path
                )
            self._paths.add(where)
            index = self._index[identity] = len(self.leaves)
            self.leaves.append(Leaf(where, value, codec, spec))
        return index


def _float(value: float) -> Any:
    if math.isfinite(value):
        return value
    return {"$float": struct.pack(">d", value).hex()}


def _shown(path: str | None) -> str:
    return "the top of the state" if path is None else repr(path)


def _no_codec(path: str | None, value: Any) -> str:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if callable(getattr(value, "state_dict", None)):
        advice = "save its state_dict() instead"
    elif isinstance(value, enum.Enum):
        advice = "save its .value instead"
    elif dataclasses.is_dataclass(value):
        advice = "save dataclasses.asdict() of it, or teach the engine with ckpt_core.register_codec"
    else:
        advice = "leave it out, save plain values instead, or teach the engine with ckpt_core.register_codec"
    return f"cannot save {_shown(path)}: there is no codec for {kind}; {advice}"
