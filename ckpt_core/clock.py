"""The one place where the engine reads a clock. Tests put a clock of their own here."""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["from_text", "monotonic", "now", "to_text"]


def now() -> datetime:
    """The present moment, in UTC, to the microsecond."""
    return datetime.now(UTC)


def monotonic() -> float:
    """Seconds on a clock that never goes back, from an arbitrary start."""
    return time.monotonic()


def to_text(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds: `2026-01-31T12:00:00.000000Z`."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def from_text(text: str) -> datetime:
    """The moment that `to_text` wrote. Raises ValueError for anything else."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is not UTC or to_text(moment) != text:  # ISO 8601 has many other forms
        raise ValueError(f"{text!r} is not a moment as 2026-01-31T12:00:00.000000Z")
    return moment
