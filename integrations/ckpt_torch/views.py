"""What the lines of a training loop iterate over: the epochs, and a loader that is watched.

They are handed out by a checkpointer, and do as it says. No state is kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ckpt_torch.loader import TrackedLoader

__all__ = ["Epochs", "LoopLoader"]


class Epochs:
    """The epochs that are left. It has a length, for progress bars."""

    def __init__(self, begin: Callable[[], Iterator[int]], left: Callable[[], int]) -> None:
        self._begin = begin
        self._left = left

    def __iter__(self) -> Iterator[int]:
        return self._begin()

    def __len__(self) -> int:
        return self._left()


class _Loop(Protocol):
    def batches(self, loader: Any) -> Iterator[Any]: ...


class LoopLoader:
    """A loader in its training loop: the batches that are left of this epoch. Else it is as the loader itself."""

    def __init__(self, loop: _Loop, tracked: TrackedLoader) -> None:
        self._loop = loop
        self._tracked = tracked

    def __iter__(self) -> Iterator[Any]:
        return self._loop.batches(self._tracked.loader)

    def __len__(self) -> int:
        return len(self._tracked)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tracked.loader, name)
