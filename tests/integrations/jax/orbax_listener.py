"""What the tests of both of Orbax's interfaces share: listening to events, and hurting files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckpt_core import HookContext, HookEvent, hook

__all__ = ["Heard", "flip", "largest"]


class Heard:
    """Every event in the order in which it came, with what `look` saw at that moment."""

    def __init__(self, look: Callable[[], Any] = lambda: None) -> None:
        self.events: list[HookContext] = []
        self.seen: list[Any] = []
        self._look = look
        self.hook = hook(*HookEvent)(self._note)

    def _note(self, context: HookContext) -> None:
        self.events.append(context)
        self.seen.append(self._look())

    def names(self, *but: HookEvent) -> list[tuple[str, int | None]]:
        return [(context.event.name, context.step) for context in self.events if context.event not in but]

    def of(self, event: HookEvent) -> list[HookContext]:
        return [context for context in self.events if context.event is event]


def largest(folder: Path) -> Path:
    """The file below a folder that holds the most: an array's bytes."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path: Path, where: float = 0.5) -> None:
    """One bit, somewhere along the file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 4
    path.write_bytes(data)
