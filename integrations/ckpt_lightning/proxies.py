"""Loaders that Lightning iterates over in the place of its own: they know their position, and can go back to it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ckpt_torch.loader import TrackedLoader

__all__ = ["TrackedProxy", "inner", "lookahead_of"]


class TrackedProxy(TrackedLoader):
    """A tracked loader that Lightning takes for the loader itself.

    While `dormant` it yields nothing: Lightning begins to iterate before it has come to the place where
    the position can be restored.
    """

    def __init__(self, loader: Any, **options: Any) -> None:
        super().__init__(loader, **options)
        self.dormant = False

    def __iter__(self) -> Iterator[Any]:
        return iter(()) if self.dormant else super().__iter__()

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # while it is copied, before there is one
            raise AttributeError(name)
        return getattr(self.loader, name)

    @property
    def _iterator(self) -> Any:
        # Lightning ends persistent workers by setting this to None.
        return self.loader._iterator

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        self.loader._iterator = value


def inner(loader: Any) -> Any:
    """The loader itself."""
    return loader.loader if isinstance(loader, TrackedProxy) else loader


def lookahead_of(combined: Any, loaders: list[Any]) -> int:
    """One where Lightning cannot know which batch is the last: then it fetches one in advance."""
    lengths = [_length(each) for each in loaders]
    limits = combined.limits or [math.inf] * len(loaders)
    if combined._mode == "min_size":
        return int(math.isinf(min(*lengths, *limits)))
    return int(math.isinf(max(min(pair) for pair in zip(lengths, limits, strict=True))))


def _length(loader: Any) -> float:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return math.inf
