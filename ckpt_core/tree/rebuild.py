"""From a tree and its tensors back to a state: plain containers, or into a structure that is given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from ckpt_core.errors import FormatError, StateMismatchError
from ckpt_core.tree.codecs import CodecRegistry, UnsupportedValueError
from ckpt_core.tree.compare import compare, mismatch, pairs
from ckpt_core.tree.nodes import children, plain_value, tag_of, walk
from ckpt_core.tree.selection import Selection

__all__ = ["rebuild", "rebuild_like", "wanted_tensors"]

GetTensor = Callable[[int, Any], Any]
"""Called with a tensor's index and the object it should become like (or None); returns the value."""

_MISSING: Any = object()  # stands for a leaf that was not selected


def rebuild(tree: Any, get: GetTensor, registry: CodecRegistry, selection: Selection | None = None) -> Any:
    """The state as plain containers: dicts, lists, tuples. Leaves not selected are left out of dicts and
    stand as None in lists and tuples. Raises FormatError where a codec is missing or fails.

    `tree` is one that `check_tree` let pass, and `get` raises errors of this engine only: so does this.
    """
    built = _Builder(get, registry, selection or Selection(None)).build(None, tree)
    return {} if built is _MISSING else built


def rebuild_like(
    tree: Any, like: Any, get: GetTensor, registry: CodecRegistry, selection: Selection | None = None
) -> Any:
    """The state in the containers of `like`. Leaves not selected keep what `like` holds.

    Raises StateMismatchError, naming every path that differs, before `get` is called; and the path of the
    first tensor whose values do not fit, when it comes to it.
    """
    selection = selection or Selection(None)
    compare(tree, like, registry, selection)
    return _Builder(get, registry, selection).fill(None, tree, like)


def wanted_tensors(
    tree: Any, like: Any, registry: CodecRegistry, selection: Selection, *, plain: bool
) -> list[tuple[int, Any]]:
    """(index, object to become like) of each tensor that `rebuild` (plain) or `rebuild_like` will ask for."""
    wanted: list[tuple[int, Any]] = []

    def note(index: int, target: Any) -> None:
        wanted.append((index, target))

    builder = _Builder(note, registry, selection, decode=False)
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
            if not self._chosen(path):
                return _MISSING
            if isinstance(node, dict) and "$tensor" in node:
                return self.get(node["$tensor"], None)
            return plain_value(node)
        tag = tag_of(node) if isinstance(node, dict) else None
        if tag == "$object":
            return self._object(path, node[tag]) if self._chosen(path, node) else _MISSING
        items = [self.build(child, item) for child, item in below]
        if all(item is _MISSING for item in items) and not self._chosen(path):
            return _MISSING
        if isinstance(node, list) or tag in ("$tuple", "$namedtuple"):
            sequence = [None if item is _MISSING else item for item in items]
            return sequence if isinstance(node, list) else tuple(sequence)
        if tag == "$backend":
            node = node[tag]["files"]
        keys = [plain_value(key) for key, _ in node[tag]] if tag == "$dict" else list(node)
        return {key: item for key, item in zip(keys, items, strict=True) if item is not _MISSING}

    def fill(self, path: str | None, node: Any, like: Any) -> Any:
        matched = pairs(path, node, like)
        if matched is not None:
            saved, wanted = matched
            items = [self.fill(p, saved[p], item) if p in saved else item for p, item in wanted]
            return _same_container(path, like, items)
        tag = tag_of(node) if isinstance(node, dict) else None
        if tag == "$object":
            return self._object(path, node[tag]) if self._chosen(path, node) else like
        if not self._chosen(path):
            return like
        if isinstance(like, (bytes, bytearray)):
            value = self.get(node[tag], None) if tag == "$tensor" else plain_value(node)
            return value if isinstance(value, type(like)) or not self.decode else type(like)(value)
        return self._tensor(path, node[tag], like) if tag == "$tensor" else plain_value(node)

    def _tensor(self, path: str | None, index: int, like: Any) -> Any:
        try:
            return self.get(index, like)
        except UnsupportedValueError as error:
            raise mismatch([f"{path or 'the top'}: {error}"], kind="values") from error

    def _chosen(self, path: str | None, node: Any = _MISSING) -> bool:
        """Whether a leaf, a whole container or (with `node`) some part of an object is selected."""
        if (path or "") in self.selection:
            return True
        return node is not _MISSING and any(leaf in self.selection for leaf, _ in walk(node, path))

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


def _same_container(path: str | None, like: Any, items: list[Any]) -> Any:
    if isinstance(like, Mapping):
        filled = dict(zip(like, items, strict=True))
        if type(like) is dict or not isinstance(like, MutableMapping):
            return filled
        try:
            made = copy.copy(like)  # keeps what a subclass has beside its items, as a defaultdict's factory
            made.update(filled)
        except Exception as error:
            where = path or "the top"
            raise StateMismatchError(
                f"like= holds a {type(like).__name__} at {where} that cannot be copied ({error}): use a dict",
                kind="like",
                paths=(where,),
            ) from error
        return made
    if isinstance(like, tuple):
        return type(like)._make(items) if hasattr(like, "_make") else tuple(items)
    return items
