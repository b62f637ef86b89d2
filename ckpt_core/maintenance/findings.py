"""What an examination of a store finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Level"]

Level = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `check` is a stable word; `advice` is the next step, empty where all is well.

    `ok` and `note` need nothing done; `warning` wants looking at; `error` is damage or in the way of saves.
    """

    level: Level
    check: str
    message: str
    advice: str = ""
