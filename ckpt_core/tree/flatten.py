"""From a state to its tree (JSON, plain values inline) and its tensors in a list.

Data and nothing else stands in a tree: `None`, booleans, numbers and strings as themselves, lists as
JSON arrays, dicts with plain string keys as JSON objects. Everything else is an object with one key
that begins with `$`: `$tensor`, `$tuple`, `$namedtuple`, `$dict`, `$bytes`, `$float`, `$int`,
`$complex`, `$object`. `docs/format.md` lists them.
"""

from __future__ import annotations

import base64
import enum
import math
import struct
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckpt_core.errors import FormatError, StateError
from ckpt_core.model import TensorSpec
from ckpt_core.tree.codecs import CodecRegistry, ObjectCodec, TensorCodec, UnsupportedValueError

__all__ = [
    "Flat",
    "Leaf",
    "child_path",
    "children",
    "flatten",
    "key_component",
    "plain_value",
    "tag_of",
    "tensor_paths",
    "walk",
]

TAGS = frozenset(
    {"$tensor", "$tuple", "$namedtuple", "$dict", "$bytes", "$float", "$int", "$complex", "$object"}
)
INLINE_BYTES = 1024
"""Byte strings up to this length stand in the manifest; longer ones are stored as tensors."""

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


def key_component(key: Any) -> str:
    """How a dict's key stands in a path: `/` as `~1` and `~` as `~0` (RFC 6901), so that paths are unique."""
    return str(key).replace("~", "~0").replace("/", "~1")


def child_path(parent: str | None, component: str) -> str:
    """The path of a child; the parent of the topmost ones is None."""
    return component if parent is None else f"{parent}/{component}"


def flatten(state: Any, registry: CodecRegistry) -> Flat:
    """Takes a state apart without copying a tensor. Raises StateError, which names the path."""
    flattener = _Flattener(registry)
    try:
        return Flat(flattener.node(None, state), tuple(flattener.leaves))
    except RecursionError:
        raise StateError("the state is nested too deeply to be saved (over some 900 levels)", kind="depth") from None


class _Flattener:
    def __init__(self, registry: CodecRegistry) -> None:
        self.leaves: list[Leaf] = []
        self._registry = registry
        self._index: dict[Hashable, int] = {}
        self._paths: set[str] = set()
        self._open: set[int] = set()

    def node(self, path: str | None, value: Any) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is int:
            return value if -_INT64 <= value < _INT64 else {"$int": str(value)}
        if kind is float:
            return _float(value)
        if kind is str:
            return self._text(path, value)
        if isinstance(value, (Mapping, list, tuple)):
            return self._container(path, value)
        if kind is complex:
            return {"$complex": [_float(value.real), _float(value.imag)]}
        if isinstance(value, (bytes, bytearray)) and kind is bytes and len(value) <= INLINE_BYTES:
            return {"$bytes": base64.b64encode(value).decode()}
        return self._coded(path, value)

    def _container(self, path: str | None, value: Any) -> Any:
        if id(value) in self._open:
            raise StateError(f"the state contains itself at {_shown(path)}", kind="cycle", path=path)
        self._open.add(id(value))
        try:
            if isinstance(value, Mapping):
                return self._mapping(path, value)
            fields = getattr(value, "_fields", None)
            if isinstance(value, tuple) and isinstance(fields, tuple):
                items = {name: self.node(child_path(path, name), getattr(value, name)) for name in fields}
                return {"$namedtuple": {"name": type(value).__name__, "fields": items}}
            items_ = [self.node(child_path(path, str(i)), item) for i, item in enumerate(value)]
            return {"$tuple": items_} if isinstance(value, tuple) else items_
        finally:
            self._open.discard(id(value))

    def _mapping(self, path: str | None, value: Mapping[Any, Any]) -> Any:
        plain = True
        seen: dict[str, Any] = {}
        rows: list[list[Any]] = []
        for key, item in value.items():
            if isinstance(key, enum.Enum) or not isinstance(key, (str, int, float, bool, type(None))):
                raise StateError(
                    f"a dict at {_shown(path)} has a key of type {type(key).__name__}; "
                    "keys may be strings, numbers, booleans or None: convert it before saving",
                    kind="key",
                    path=path,
                )
            plain = plain and type(key) is str and not key.startswith("$")
            component = key_component(key)
            if component in seen:
                raise StateError(
                    f"keys {seen[component]!r} and {key!r} of the dict at {_shown(path)} give the same path",
                    kind="key",
                    path=path,
                )
            seen[component] = key
            rows.append([self.node(path, key), self.node(child_path(path, component), item)])
        return dict(rows) if plain else {"$dict": rows}

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
        codec = self._registry.find(np.generic if isinstance(value, np.generic) else type(value))
        try:
            if isinstance(codec, ObjectCodec):
                return {"$object": {"codec": codec.name, "value": self.node(path, codec.encode(value))}}
            if codec is not None:
                return {"$tensor": self._tensor(path, value, codec)}
        except UnsupportedValueError as error:
            raise StateError(f"cannot save {_shown(path)}: {error}", kind="unsupported", path=path) from None
        if not isinstance(value, enum.Enum):
            for base in (int, float, str):
                if isinstance(value, base):
                    return self.node(path, base(value))
        raise StateError(_no_codec(path, value), kind="no-codec", path=path, type=type(value).__name__)

    def _tensor(self, path: str | None, value: Any, codec: TensorCodec) -> int:
        spec = codec.spec(value)
        identity = (codec.name, spec, codec.identity(value))
        index = self._index.get(identity)
        if index is None:
            where = path if path is not None else ""
            self._text(path, where)
            if where in self._paths:  # only an object codec that hides two tensors behind one path
                raise StateError(f"two tensors at {_shown(path)}: let the codec return a dict", path=path)
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
    else:
        advice = "leave it out, save plain values instead, or teach the engine with ckpt_core.register_codec"
    return f"cannot save {_shown(path)}: there is no codec for {kind}; {advice}"


def children(node: Any, path: str | None) -> list[tuple[str | None, Any]] | None:
    """(path, node) of each child of a container's node; None for a leaf. Raises FormatError."""
    if isinstance(node, list):
        return [(child_path(path, str(i)), item) for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return None
    tag = tag_of(node)
    if tag is None:
        return [(child_path(path, key_component(key)), item) for key, item in node.items()]
    body = node[tag]
    if tag == "$tuple":
        return children(list(body), path)
    if tag == "$namedtuple":
        return [(child_path(path, name), item) for name, item in body["fields"].items()]
    if tag == "$dict":
        return [(child_path(path, key_component(plain_value(key))), item) for key, item in body]
    if tag == "$object":
        return [(path, body["value"])]
    return None


def tag_of(node: dict[str, Any]) -> str | None:
    """The `$tag` of a node that is more than a plain dict. Raises FormatError for an unknown one."""
    if len(node) != 1:
        return None
    tag = next(iter(node))
    if not tag.startswith("$"):
        return None
    if tag not in TAGS:
        raise FormatError(f"the state's tree holds {tag!r}, which this version does not know", kind="tree")
    return tag


def plain_value(node: Any) -> Any:
    """The value of a leaf's node that is not a tensor."""
    if not isinstance(node, dict) or (tag := tag_of(node)) is None:
        return node
    body = node[tag]
    if tag == "$int":
        return int(body)
    if tag == "$float":
        return struct.unpack(">d", bytes.fromhex(body))[0]
    if tag == "$complex":
        return complex(plain_value(body[0]), plain_value(body[1]))
    if tag == "$bytes":
        return base64.b64decode(body, validate=True)
    raise FormatError(f"{tag!r} is not a plain value", kind="tree")


def walk(node: Any, path: str | None = None) -> Iterator[tuple[str, Any]]:
    """Every leaf of a tree as (path, node): tensors as `{"$tensor": i}`, plain values as they stand."""
    below = children(node, path)
    if below is None:
        yield (path or "", node)
        return
    for child, item in below:
        yield from walk(item, child)


def tensor_paths(tree: Any) -> dict[str, int]:
    """The index of the tensor at each path of a tree; tied tensors stand under every one of their paths."""
    return {path: node["$tensor"] for path, node in walk(tree) if isinstance(node, dict) and "$tensor" in node}
