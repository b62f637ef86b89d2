"""What the state of one process has apart from that of the first: found by digests, kept as a list, put back.

Processes that train one model hold nearly everything alike. A part is the list of what is not: places in the
nested state, and the values there.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["Part", "difference", "outline", "overlay", "own"]

Part = list[tuple[list[Any], Any]]
"""(place, value): the place is the keys and indices that lead there."""


def outline(value: Any, alike: Collection[str] = ()) -> Any:
    """The digests of all that a state holds, in its own dicts and lists.

    `alike`: names of tensors that are known to be alike everywhere; they are not looked at.
    """
    if isinstance(value, Mapping):
        return {key: outline(item, alike) for key, item in value.items() if not _passed(key, item, alike)}
    if isinstance(value, list):
        return [outline(item, alike) for item in value]
    return _digest(value)


def difference(value: Any, theirs: Any, alike: Collection[str] = ()) -> Part:
    """What this state has apart from the one whose `outline` is given; copies, in host memory."""
    return [(place, own(item)) for place, item in _differing([], value, theirs, alike)]


def overlay(state: Any, part: Part) -> None:
    """Put into `state` what `part` has apart from it."""
    for place, value in part:
        target = state
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = value


def own(value: Any) -> Any:
    """A copy in host memory, which shares nothing with what is being trained."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: own(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(own(item) for item in value)
    return value


def _differing(
    place: list[Any], value: Any, theirs: Any, alike: Collection[str]
) -> Iterator[tuple[list[Any], Any]]:
    if isinstance(value, Mapping) and isinstance(theirs, Mapping):
        mine = {key: item for key, item in value.items() if not _passed(key, item, alike)}
        if mine.keys() == theirs.keys():
            for key, item in mine.items():
                yield from _differing([*place, key], item, theirs[key], alike)
            return
    elif isinstance(value, list) and isinstance(theirs, list) and len(value) == len(theirs):
        for index, item in enumerate(value):
            yield from _differing([*place, index], item, theirs[index], alike)
        return
    if isinstance(theirs, (Mapping, list)) or _digest(value) != theirs:
        yield place, value


def _passed(key: Any, item: Any, alike: Collection[str]) -> bool:
    return isinstance(item, torch.Tensor) and key in alike


def _digest(value: Any) -> bytes:
    sha = hashlib.sha256()
    for piece in _pieces(value):
        sha.update(piece)
    return sha.digest()


def _pieces(value: Any) -> Iterator[Any]:
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        yield f"tensor {plain.dtype} {list(plain.shape)}".encode()
        if plain.numel():
            yield plain.reshape(-1).view(torch.uint8).numpy()
    elif isinstance(value, np.ndarray):
        yield f"array {value.dtype} {value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, Mapping):
        yield b"mapping"
        for key, item in value.items():
            yield repr(key).encode()
            yield from _pieces(item)
    elif isinstance(value, (list, tuple)):
        yield f"{type(value).__name__} {len(value)}".encode()
        for item in value:
            yield from _pieces(item)
    else:
        try:
            yield pickle.dumps(value)
        except (pickle.PicklingError, TypeError, AttributeError):  # told when it is to be saved
            yield repr(value).encode()
