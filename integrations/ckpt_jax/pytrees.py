"""Any pytree as a state of plain dicts, lists and tuples, and back into a pytree of the same structure.

Nodes that JAX knows by registration (flax, equinox, chex, one's own) become dicts of their children; what
they hold besides, as activation functions and sizes, is code's business and comes from `like`. Reading is
`loading.py`'s.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from ckpt_core.tree.nodes import child_path, key_component

__all__ = ["as_state", "donated", "fill", "injected_rate"]

Leaf = Callable[[str | None, Any, Any], Any]
"""Called with the path, what is in `like`, and what was saved; returns what is to stand there."""


def as_state(tree: Any, leaf: Callable[[str | None, Any], Any] | None = None, path: str | None = None) -> Any:
    """A pytree as `CheckpointManager.save` takes it: the same arrays in dicts, lists and tuples.

    Of an nnx object (Module, Optimizer, Rngs) its state is taken, as `nnx.state` gives it. Functions among
    the leaves stand as None. `leaf`, if given, is called with the path of each leaf and replaces it.
    """
    if _is_stateful(tree):
        return as_state(_nnx().state(tree), leaf, path)
    if type(tree) is dict:
        return {_key(key): as_state(item, leaf, _below(path, _key(key))) for key, item in tree.items()}
    if isinstance(tree, (list, tuple)) and _is_plain_sequence(tree):
        names = getattr(tree, "_fields", range(len(tree)))
        items = [as_state(item, leaf, _below(path, name)) for item, name in zip(tree, names, strict=True)]
        return _like_sequence(tree, items)
    parts = _parts(tree)
    if parts is None:
        if tree is None or _is_code(tree):
            return None
        return tree if leaf is None else leaf(path, tree)
    keys, children, _ = parts
    if keys == ["value"]:  # the box around one array: flax's Variable, Partitioned
        return as_state(children[0], leaf, path)
    items = [as_state(child, leaf, _below(path, key)) for key, child in zip(keys, children, strict=True)]
    return items if _is_counted(keys) else dict(zip(keys, items, strict=True))


def fill(like: Any, saved: Any, leaf: Leaf, path: str | None = None) -> Any:
    """A pytree like `like` whose leaves are those of `saved`, a state of the structure `as_state(like)`.

    nnx objects are updated in place, so that what they share stays shared.
    """
    if _is_stateful(like):
        nnx = _nnx()
        nnx.update(like, fill(nnx.state(like), saved, leaf, path))
        return like
    if type(like) is dict:
        return {
            key: fill(item, saved[_key(key)], leaf, _below(path, _key(key))) for key, item in like.items()
        }
    if isinstance(like, (list, tuple)) and _is_plain_sequence(like):
        names = getattr(like, "_fields", range(len(like)))
        items = zip(like, saved, names, strict=True)
        return _like_sequence(like, [fill(item, old, leaf, _below(path, name)) for item, old, name in items])
    parts = _parts(like)
    if parts is None:
        return like if like is None or _is_code(like) else leaf(path, like, saved)
    keys, children, treedef = parts
    if keys == ["value"]:
        return treedef.unflatten([fill(children[0], saved, leaf, path)])
    filled = [fill(c, saved[k], leaf, _below(path, k)) for k, c in zip(keys, children, strict=True)]
    return treedef.unflatten(filled)


def donated(old: Any, new: Any) -> bool | None:
    """Whether the memory of the arrays of `old` was given to what made `new` of them; None where nobody can tell."""
    before, after = (
        [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)] for tree in (old, new)
    )
    if any(leaf.is_deleted() for leaf in before):
        return True
    kept = {id(leaf) for leaf in after}
    return None if not before or all(id(leaf) in kept for leaf in before) else False


def injected_rate(tree: Any) -> float | None:
    """The learning rate that the last step was made with, where optax's `inject_hyperparams` keeps it in the state."""

    def holds(node: Any) -> bool:
        return "learning_rate" in (getattr(node, "hyperparams", None) or ())

    found = (each for each in jax.tree_util.tree_leaves(tree, is_leaf=holds) if holds(each))
    rates = [float(each.hyperparams["learning_rate"]) for each in found]
    return max(rates, default=None)


def _parts(node: Any) -> tuple[list[Any], list[Any], Any] | None:
    """Keys, children and recipe of a registered node; None for a leaf."""
    if node is None:
        return None
    found, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda item: item is not node)
    if len(found) == 1 and not found[0][0]:
        return None
    return [_name(path[0]) for path, _ in found], [child for _, child in found], treedef


def _name(entry: Any) -> Any:
    if isinstance(entry, GetAttrKey):
        return entry.name
    if isinstance(entry, SequenceKey):
        return entry.idx
    if isinstance(entry, (DictKey, FlattenedIndexKey)):
        return _key(entry.key)
    return str(entry)


def _is_counted(keys: list[Any]) -> bool:
    return bool(keys) and keys == list(range(len(keys)))


def _key(key: Any) -> Any:
    return key if isinstance(key, (str, int, float, bool)) or key is None else str(key)


def _below(path: str | None, key: Any) -> str:
    return child_path(path, key_component(key))


def _is_plain_sequence(node: Any) -> bool:
    return type(node) in (list, tuple) or hasattr(node, "_fields")


def _like_sequence(node: Any, items: list[Any]) -> Any:
    if isinstance(node, list):
        return items
    return type(node)._make(items) if hasattr(node, "_fields") else tuple(items)


def _is_code(leaf: Any) -> bool:
    return callable(leaf) and not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct))


def _nnx() -> Any:
    return sys.modules.get("flax.nnx")


def _is_stateful(node: Any) -> bool:
    """Whether it is an nnx object, which is changed in place. Its library is here if it is one."""
    nnx = _nnx()
    return nnx is not None and isinstance(node, nnx.Pytree)
