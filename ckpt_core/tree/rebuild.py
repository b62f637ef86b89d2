"""From a tree and its tensors back to a state: plain containers, or into a structure that is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_core.errors import FormatError
from ckpt_core.tree.codecs import CodecRegistry
from ckpt_core.tree.compare import compare, pairs
from ckpt_core.tree.flatten import children, plain_value, tag_of, walk
from ckpt_core.tree.selection import Selection

__all__ = ["rebuild", "rebuild_like", "wanted_tensors"]

GetTensor = Callable[[int, Any], Any]
"""Called with a tensor's index and the object it should become like (or None); returns the value."""

_MISSING: Any = object()  # stands for a leaf that was not selected


def rebuild(tree: Any, get: GetTensor, registry: CodecRegistry, selection: Selection | None = None) -> Any:
    """The state as plain containers: dicts, lists, tuples. Leaves not selected are left out of dicts and
    stand as None in lists and tuples. Raises FormatError where a codec is missing or fails."""
    built = _Builder(get, registry, selection or Selection(None)).build(None, tree)
    return {} if built is _MISSING else built


def rebuild_like(
    tree: Any, like: Any, get: GetTensor, registry: CodecRegistry, selection: Selection | None = None
) -> Any:
    """The state in the containers of `like`. Leaves not selected keep what `like` holds.

    Raises StateMismatchError, naming every path that differs, before `get` is called.
    """
    selection = selection or Selection(None)
    compare(tree, like, registry, selection)
    return _Builder(get, registry, selection).fill(None, tree, like)


def wanted_tensors(
    tree: Any, like: Any, registry: CodecRegistry, selection: Selection, *, plain: bool
) -> list[tuple[int, Any]]:
    """(index, object to become like) of every tensor that `rebuild` (plain) or `rebuild_like` will ask for."""
    wanted: list[tuple[int, Any]] = []
    builder = _Builder(lambda index, target: wanted.append((index, target)), registry, selection, decode=False)
    if plain:
        builder.build(None, tree)
    else:
        compare(tree, like, registry, selection)
        builder.fill(None, tree, like)
    return wanted


@dataclass(slots=True)
class _Builder:
    get: GetTensor
    registry: CodecRegistry
    selection: Selection
    decode: bool = True

    def build(self, path: str | None, node: Any) -> Any:
        below = children(node, path)
        if below is None:
            if (path or "") not in self.selection:
                return _MISSING
            if isinstance(node, dict) and "$tensor" in node:
                return self.get(node["$tensor"], None)
            return plain_value(node)
        tag = tag_of(node) if isinstance(node, dict) else None
        if tag == "$object":
            chosen = any(leaf in self.selection for leaf, _ in walk(node, path))
            return self._object(path, node[tag]) if chosen else _MISSING
        items = [self.build(child, item) for child, item in below]
        if items and all(item is _MISSING for item in items) and not self.selection.everything:
            return _MISSING
        if isinstance(node, list) or tag in ("$tuple", "$namedtuple"):
            sequence = [None if item is _MISSING else item for item in items]
            return sequence if isinstance(node, list) else tuple(sequence)
        keys = [plain_value(key) for key, _ in node[tag]] if tag == "$dict" else list(node)
        return {key: item for key, item in zip(keys, items, strict=True) if item is not _MISSING}

    def fill(self, path: str | None, node: Any, like: Any) -> Any:
        matched = pairs(path, node, like)
        if matched is not None:
            saved, wanted = matched
            items = [self.fill(p, saved[p], item) if p in saved else item for p, item in wanted.items()]
            return _same_container(like, items)
        if isinstance(node, dict) and tag_of(node) == "$object":
            chosen = any(leaf in self.selection for leaf, _ in walk(node, path))
            return self._object(path, node["$object"]) if chosen else like
        if (path or "") not in self.selection:
            return like
        if isinstance(node, dict) and "$tensor" in node:
            return self.get(node["$tensor"], None if isinstance(like, (bytes, bytearray)) else like)
        return plain_value(node)

    def _object(self, path: str | None, body: dict[str, Any]) -> Any:
        codec = self.registry.object_named(body["codec"])
        value = _Builder(self.get, self.registry, Selection(None), self.decode).build(path, body["value"])
        if not self.decode:
            return None
        try:
            return codec.decode(value)
        except Exception as error:  # a codec is somebody's code, and its input comes from a file
            raise FormatError(
                f"codec {codec.name!r} could not make an object of what is stored at {path!r}: {error}",
                kind="codec",
                codec=codec.name,
                path=path,
            ) from error


def _same_container(like: Any, items: list[Any]) -> Any:
    if isinstance(like, Mapping):
        filled = dict(zip(like, items, strict=True))
        if type(like) is dict:
            return filled
        copy = getattr(like, "copy", None)
        made = copy() if callable(copy) else dict(like)
        if not isinstance(made, dict):
            raise FormatError(
                f"like= holds a {type(like).__name__}, which cannot be copied: use a dict", kind="like"
            )
        made.update(filled)
        return made
    if isinstance(like, tuple):
        return type(like)._make(items) if hasattr(like, "_make") else tuple(items)
    return items
