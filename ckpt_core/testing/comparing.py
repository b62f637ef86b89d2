"""Whether two states are the same to the last bit."""

from __future__ import annotations

from typing import Any

import msgspec

from ckpt_core.tree import borrow, flatten, registry

__all__ = ["same_state"]


def same_state(left: Any, right: Any) -> bool:
    """Whether two states hold the same: types, order of keys, NaN payloads, signs of zeros, tied tensors."""
    one, other = borrow(flatten(left, registry)), borrow(flatten(right, registry))
    if msgspec.json.encode(one.tree) != msgspec.json.encode(other.tree) or len(one.tensors) != len(
        other.tensors
    ):
        return False
    return all(
        (a.path, a.kind, a.spec) == (b.path, b.kind, b.spec) and bool((a.data == b.data).all())
        for a, b in zip(one.tensors, other.tensors, strict=True)
    )
