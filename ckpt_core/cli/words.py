"""Sizes, times and numbers as people read them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from ckpt_core import clock
from ckpt_core.maintenance.wording import counted, size

__all__ = ["ago", "counted", "iso", "number", "seconds", "share", "size", "when"]

_SPANS = (
    (60.0, 1.0, "s"),
    (3600.0, 60.0, "min"),
    (86400.0, 3600.0, "h"),
    (30 * 86400.0, 86400.0, "d"),
    (365 * 86400.0, 30 * 86400.0, "mo"),
    (math.inf, 365 * 86400.0, "y"),
)


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC, to the second: `2026-01-31T12:00:00Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ago(moment: datetime) -> str:
    """How long ago: `3 min ago`; `in 3 min` where a clock is ahead."""
    passed = (clock.now() - moment).total_seconds()
    if abs(passed) < 2:
        return "now"
    return f"{seconds(passed)} ago" if passed > 0 else f"in {seconds(-passed)}"


def when(moment: datetime) -> str:
    """Both ways of telling a moment: `3 min ago (2026-01-31T12:00:00Z)`."""
    return f"{ago(moment)} ({iso(moment)})"


def seconds(duration: float) -> str:
    """A length of time in its largest unit: `45 s`, `3 min`, `5 d`."""
    unit, word = next((unit, word) for limit, unit, word in _SPANS if duration < limit)
    return f"{int(duration / unit)} {word}"


def number(value: float) -> str:
    """A metric or a statistic in five significant digits."""
    return f"{value:.5g}"


def share(value: float) -> str:
    """A fraction as a percentage; what is not nothing is not shown as 0, nor what is not all as 100."""
    percent = 100 * value
    if 0 < percent < 0.01:
        return "<0.01%"
    if 99.99 < percent < 100:
        return ">99.99%"
    return f"{percent:.3g}%"
