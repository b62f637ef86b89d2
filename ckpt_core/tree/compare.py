"""Whether a saved tree fits a structure in memory, found out before anything is read or written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ckpt_core.errors import StateMismatchError
from ckpt_core.tree.codecs import CodecRegistry, ObjectCodec
from ckpt_core.tree.nodes import child_path, children, key_component, tag_of, walk
from ckpt_core.tree.selection import Selection

__all__ = ["compare", "mismatch", "pairs"]

_SHOWN = 8
_FAMILIES = {None: "a dict", "$dict": "a dict", "$tuple": "a tuple", "$namedtuple": "a named tuple"}
_TUPLES = ("a tuple", "a named tuple")


def compare(tree: Any, like: Any, registry: CodecRegistry, selection: Selection) -> None:
    """Raises StateMismatchError, which names every selected path that differs in structure."""
    differences: list[str] = []
    _Comparison(registry, selection, differences).run(None, tree, like)
    if differences:
        raise mismatch(differences)


def mismatch(differences: list[str], kind: str = "structure") -> StateMismatchError:
    """The error for differences written as `path: what differs`."""
    more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    return StateMismatchError(
        "the checkpoint does not fit like=: " + "; ".join(differences[:_SHOWN]) + more,
        kind=kind,
        paths=tuple(text.partition(": ")[0] for text in differences),
    )


def pairs(path: str | None, node: Any, like: Any) -> tuple[dict[str, Any], list[tuple[str, Any]]] | None:
    """Children of a node by path, and members of the container in `like` with their paths in its order;
    None where the node is a leaf. A named tuple and a plain one are paired by position."""
    below = children(node, path)
    if below is None or (isinstance(node, dict) and tag_of(node) == "$object"):
        return None
    saved = {child or "": item for child, item in below}
    wanted = [(child_path(path, name), item) for name, item in _members(like)]
    if isinstance(like, tuple) and (_family(like) != _saved_family(node)):
        names = list(saved)
        wanted = [(names[i] if i < len(names) else own, item) for i, (own, item) in enumerate(wanted)]
    return saved, wanted


class _Comparison:
    def __init__(self, registry: CodecRegistry, selection: Selection, differences: list[str]) -> None:
        self._registry = registry
        self._selection = selection
        self._differences = differences

    def run(self, path: str | None, node: Any, like: Any) -> None:
        saved_family, wanted_family = _saved_family(node), self._family_of(like)
        if saved_family != wanted_family and not (saved_family in _TUPLES and wanted_family in _TUPLES):
            self._note(path, node, f"saved as {saved_family}, like= has {_described(like)}")
            return
        matched = pairs(path, node, like)
        if matched is None:
            self._leaf(path, node, like)
            return
        saved, members = matched
        wanted = dict(members)
        if len(wanted) < len(members):
            self._note(path, node, "two keys of like= give the same path")
            return
        for child, item in saved.items():
            if child in wanted:
                self.run(child, item, wanted[child])
            else:
                self._note(child, item, "saved, but not in like=")
        for child in wanted:
            if child not in saved and child in self._selection:
                self._differences.append(f"{child}: in like=, but not saved")

    def _leaf(self, path: str | None, node: Any, like: Any) -> None:
        tag = tag_of(node) if isinstance(node, dict) else None
        if isinstance(like, (bytes, bytearray)):  # these stand in the tree or as tensors, by length
            if tag not in ("$bytes", "$tensor"):
                self._note(path, node, f"not saved as bytes, like= has {_described(like)}")
        elif (tag == "$tensor") != self._is_tensor(like):
            what = "a tensor" if tag == "$tensor" else "a plain value"
            self._note(path, node, f"saved as {what}, like= has {_described(like)}")

    def _note(self, path: str | None, node: Any, difference: str) -> None:
        if (path or "") in self._selection or any(leaf in self._selection for leaf, _ in walk(node, path)):
            self._differences.append(f"{path or 'the top'}: {difference}")

    def _family_of(self, like: Any) -> str:
        family = _family(like)
        if family == "a leaf" or type(like) in (dict, list, tuple):
            return family
        return "a leaf" if isinstance(self._registry.find(type(like)), ObjectCodec) else family

    def _is_tensor(self, like: Any) -> bool:
        if like is None or isinstance(like, (bool, int, float, str, complex, np.generic)):
            return False
        codec = self._registry.find(type(like))
        return codec is not None and not isinstance(codec, ObjectCodec)


def _members(like: Any) -> list[tuple[str, Any]]:
    if isinstance(like, Mapping):
        return [(key_component(key), item) for key, item in like.items()]
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        return [(name, getattr(like, name)) for name in like._fields]
    if isinstance(like, (list, tuple)):
        return [(str(i), item) for i, item in enumerate(like)]
    return []


def _family(like: Any) -> str:
    if isinstance(like, Mapping):
        return "a dict"
    if isinstance(like, tuple):
        return "a named tuple" if hasattr(like, "_fields") else "a tuple"
    return "a list" if isinstance(like, list) else "a leaf"


def _saved_family(node: Any) -> str:
    if isinstance(node, list):
        return "a list"
    return _FAMILIES.get(tag_of(node), "a leaf") if isinstance(node, dict) else "a leaf"


def _described(like: Any) -> str:
    family = _family(like)
    return f"a value of type {type(like).__name__}" if family == "a leaf" else family
