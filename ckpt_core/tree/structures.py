"""Objects in a state that open up into others: replaced by their members before a load, and put back after it.

How one opens is its codec's to say; a save opens them as it comes to them (see `flatten`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ckpt_core.errors import StateMismatchError
from ckpt_core.tree.codecs import CodecRegistry, UnsupportedValueError
from ckpt_core.tree.nodes import child_path, key_component

__all__ = ["closed", "opened"]

_LEAVES = (type(None), bool, int, float, complex, str, bytes)


def opened(like: Any, registry: CodecRegistry, path: str | None = None, within: tuple[int, ...] = ()) -> Any:
    """`like` with each object that a structure codec knows replaced by its members; itself where there is none.

    `within`: the `id`s of the objects and containers that it is a member of. Raises StateMismatchError for an
    object that cannot be opened, and for what contains itself.
    """
    if isinstance(like, _LEAVES):
        return like
    if id(like) in within:
        where = path or "the top"
        raise StateMismatchError(f"like= at {where}: it contains itself", kind="like", paths=(where,))
    within = (*within, id(like))
    if isinstance(like, (Mapping, list, tuple)):
        return _container(like, registry, path, within)
    codec = registry.structure(type(like))
    if codec is None:
        return like
    try:
        return opened(dict(codec.members(like)), registry, path, within)
    except UnsupportedValueError as error:
        where = path or "the top"
        raise StateMismatchError(f"like= at {where}: {error}", kind="like", paths=(where,)) from None


def closed(like: Any, opened: Any, state: Any) -> Any:
    """`state`, as it was loaded into `opened`, with the objects of `like` where their members stand."""
    if opened is like:
        return state
    if not isinstance(like, (Mapping, list, tuple)):
        return like
    if isinstance(like, Mapping):
        for key in like:
            state[key] = closed(like[key], opened[key], state[key])
        return state
    items = [closed(*each) for each in zip(like, opened, state, strict=True)]
    if isinstance(like, list):
        return items
    return type(state)._make(items) if hasattr(state, "_make") else tuple(items)


def _container(like: Any, registry: CodecRegistry, path: str | None, within: tuple[int, ...]) -> Any:
    if isinstance(like, Mapping):
        members = {
            key: opened(item, registry, child_path(path, key_component(key)), within)
            for key, item in like.items()
        }
        if all(members[key] is like[key] for key in members):
            return like
        if type(like) is dict:
            return members
        made = copy.copy(like)
        made.update(members)  # type: ignore[attr-defined]
        return made
    items = [opened(item, registry, child_path(path, str(index)), within) for index, item in enumerate(like)]
    if all(item is before for item, before in zip(items, like, strict=True)):
        return like
    if isinstance(like, list):
        return items
    return type(like)._make(items) if hasattr(like, "_make") else tuple(items)
