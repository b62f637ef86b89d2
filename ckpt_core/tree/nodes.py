"""The tree of a state as manifests hold it: its grammar, walking it, and checking one that comes from a file.

Data and nothing else stands in a tree: `None`, booleans, numbers and strings as themselves, lists as
JSON arrays, dicts with plain string keys as JSON objects. Everything else is an object with one key
that begins with `$`: `$tensor`, `$tuple`, `$namedtuple`, `$dict`, `$bytes`, `$float`, `$int`,
`$complex`, `$object`; and `$backend` in place of a tree of which a storage backend made files.
`docs/format.md` lists them.
"""

from __future__ import annotations

import base64
import enum
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ckpt_core.errors import FormatError

__all__ = [
    "INLINE_BYTES",
    "MAX_DEPTH",
    "TAGS",
    "BackendFiles",
    "backend_files",
    "backend_tree",
    "base_value",
    "check_tree",
    "child_path",
    "children",
    "is_file_name",
    "key_component",
    "plain_value",
    "tag_of",
    "tensor_paths",
    "tensors_in",
    "walk",
]

MAX_DEPTH = 100
"""Containers within containers that a state may have. A tree of that depth is read and rebuilt without
coming near Python's limit on recursion, wherever it is loaded."""

INLINE_BYTES = 1024
"""Byte strings up to this length stand in the manifest; longer ones are stored as tensors."""

_BASE = frozenset({type(None), bool, int, float, str})
_FLOAT = re.compile("[0-9a-f]{16}")
_INT = re.compile("-?0x[0-9a-f]+")


class BackendFiles(NamedTuple):
    """What a storage backend made of a state: the backend's name, the file or folder that it wrote, and the tensor
    that holds the bytes of each file, by its path from where `path` stands."""

    name: str
    path: str
    files: dict[str, int]


def backend_tree(name: str, path: str, files: Mapping[str, int]) -> dict[str, Any]:
    """The tree of a checkpoint that a storage backend made."""
    tensors = {file: {"$tensor": index} for file, index in files.items()}
    return {"$backend": {"name": name, "path": path, "files": tensors}}


def backend_files(tree: Any) -> BackendFiles | None:
    """What a storage backend made; None for the tree of a state."""
    if not isinstance(tree, dict) or tag_of(tree) != "$backend":
        return None
    body = tree["$backend"]
    files = {file: node["$tensor"] for file, node in body["files"].items()}
    return BackendFiles(body["name"], body["path"], files)


def is_file_name(name: str) -> bool:
    """Whether a text is the relative path of a file that can be made anywhere, and leads out of nothing."""
    parts = name.split("/")
    return (
        len(name) <= 4096
        and "\\" not in name
        and name.isprintable()
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
    )


def base_value(value: Any) -> Any:
    """An instance of a subclass of a plain type (but an enumeration's) as one of the type itself."""
    if type(value) in _BASE or isinstance(value, (bool, enum.Enum)):
        return value
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__float__(value)
    return str.__str__(value) if isinstance(value, str) else value


def key_component(key: Any) -> str:
    """How a dict's key stands in a path, which is unique: `/` as `~1` and `~` as `~0` (RFC 6901)."""
    if type(key) is str and "~" not in key and "/" not in key:  # nearly all of them
        return key
    key = base_value(key)
    huge = type(key) is int and key.bit_length() > 64  # Python refuses to write very long ones in decimal
    return (hex(key) if huge else str(key)).replace("~", "~0").replace("/", "~1")


def child_path(parent: str | None, component: str) -> str:
    """The path of a child; the parent of the topmost ones is None."""
    return component if parent is None else f"{parent}/{component}"


def tag_of(node: dict[str, Any]) -> str | None:
    """The `$tag` of a node that is more than a plain dict. Raises FormatError for an unknown one."""
    if len(node) != 1:
        return None
    tag = next(iter(node))
    if not tag.startswith("$"):
        return None
    if tag not in TAGS:
        raise FormatError(
            f"the state's tree holds {tag!r}, which this version of ckpt-core does not know: upgrade it",
            kind="tree",
        )
    return tag


def children(node: Any, path: str | None) -> list[tuple[str | None, Any]] | None:
    """(path, node) of each child of a container's node; None for a leaf."""
    if isinstance(node, list):
        return [(child_path(path, str(i)), item) for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return None
    tag = tag_of(node)
    if tag is None:
        return [(child_path(path, key_component(key)), item) for key, item in node.items()]
    body = node[tag]
    if tag == "$tuple":
        return children(body, path)
    if tag == "$namedtuple":
        return [(child_path(path, name), item) for name, item in body["fields"].items()]
    if tag == "$dict":
        return [(child_path(path, key_component(plain_value(key))), item) for key, item in body]
    if tag == "$object":
        return [(path, body["value"])]
    if tag == "$backend":
        return [(child_path(path, key_component(name)), item) for name, item in body["files"].items()]
    return None


def plain_value(node: Any) -> Any:
    """The value of a leaf's node that is not a tensor."""
    if not isinstance(node, dict) or (tag := tag_of(node)) is None:
        return node
    body = node[tag]
    if tag == "$int":
        return int(body, 16)
    if tag == "$float":
        return struct.unpack(">d", bytes.fromhex(body))[0]
    if tag == "$complex":
        return complex(plain_value(body[0]), plain_value(body[1]))
    if tag == "$bytes":
        return base64.b64decode(body)
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
    return tensors_in(walk(tree))


def tensors_in(leaves: Iterable[tuple[str, Any]]) -> dict[str, int]:
    """The same, of leaves as `walk` gives them."""
    return {path: node["$tensor"] for path, node in leaves if isinstance(node, dict) and "$tensor" in node}


def check_tree(tree: Any, tensors: int) -> None:
    """Raises FormatError (kind `tree`) for what is no tree over so many tensors, or too deep a one.

    The other functions of this module, and those that rebuild a state, may trust a tree that passed.
    """
    todo: list[tuple[Any, int]] = [(tree, 0)]
    while todo:  # no recursion: the depth comes from a file
        node, depth = todo.pop()
        below: list[Any] | None = None
        if isinstance(node, list):
            below = node
        elif isinstance(node, dict):
            tag = tag_of(node)
            below = list(node.values()) if tag is None else _below(tag, node[tag], tensors, depth)
        if below is None:
            continue
        if depth >= MAX_DEPTH:
            raise FormatError(f"the state's tree is nested over {MAX_DEPTH} levels deep", kind="tree")
        todo.extend((item, depth + 1) for item in below)


def _below(tag: str, body: Any, tensors: int, depth: int) -> list[Any] | None:
    """The trees below a tagged node; None for a leaf."""
    below: list[Any] | None = None
    if tag == "$tensor":
        fits = type(body) is int and 0 <= body < tensors
    elif tag in _LEAVES:
        fits = _LEAVES[tag](body)
    elif tag == "$tuple":
        fits, below = isinstance(body, list), body
    elif tag == "$namedtuple":
        fits = _has(body, name=str, fields=dict)
        below = list(body["fields"].values()) if fits else []
    elif tag == "$object":
        fits = _has(body, codec=str) and "value" in body
        below = [body["value"]] if fits else []
    elif tag == "$backend":
        fits = depth == 0 and _is_backend(body)
        below = list(body["files"].values()) if fits else []
    else:
        fits = isinstance(body, list) and all(_is_row(row) for row in body)
        below = [row[1] for row in body] if fits else []
    if not fits:
        raise FormatError(f"the state's tree holds a {tag!r} that cannot be read", kind="tree", tag=tag)
    return below


def _has(body: Any, **members: type) -> bool:
    return isinstance(body, dict) and all(isinstance(body.get(name), kind) for name, kind in members.items())


def _is_backend(body: Any) -> bool:
    if not _has(body, name=str, path=str, files=dict) or not is_file_name(body["path"]):
        return False
    names = body["files"].keys()
    folders = {name[:at] for name in names for at, letter in enumerate(name) if letter == "/"}
    return (
        bool(names)
        and folders.isdisjoint(names)
        and all(is_file_name(name) and f"{name}/".startswith(f"{body['path']}/") for name in names)
        and all(isinstance(node, dict) and list(node) == ["$tensor"] for node in body["files"].values())
    )


def _is_row(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 2 and _is_key(row[0])


def _is_key(node: Any) -> bool:
    if isinstance(node, dict):
        return len(node) == 1 and any(tag in node and _LEAVES[tag](node[tag]) for tag in ("$int", "$float"))
    return not isinstance(node, list)


def _is_real(node: Any) -> bool:
    if isinstance(node, dict):
        return len(node) == 1 and _is_float(node.get("$float"))
    return isinstance(node, float)


def _is_complex(body: Any) -> bool:
    return isinstance(body, list) and len(body) == 2 and all(_is_real(part) for part in body)


def _is_int(body: Any) -> bool:
    return isinstance(body, str) and _INT.fullmatch(body) is not None


def _is_float(body: Any) -> bool:
    return isinstance(body, str) and _FLOAT.fullmatch(body) is not None


def _is_bytes(body: Any) -> bool:
    try:
        return isinstance(body, str) and base64.b64decode(body, validate=True) is not None
    except ValueError:
        return False


_LEAVES: dict[str, Callable[[Any], bool]] = {
    "$bytes": _is_bytes,
    "$float": _is_float,
    "$int": _is_int,
    "$complex": _is_complex,
}

TAGS = frozenset({"$tensor", "$tuple", "$namedtuple", "$dict", "$object", "$backend", *_LEAVES})
