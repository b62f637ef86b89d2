"""The checks that arguments of policies go through.

Each raises UsageError, so that a slip shows before training begins.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from ckpt_core.errors import UsageError

__all__ = ["Mode", "check_count", "check_mode", "check_quantity", "named"]

Mode: TypeAlias = Literal["min", "max"]


def check_count(what: str, value: int, *, least: int = 1) -> None:
    """A whole number, `least` or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{what} is {value!r}; give a whole number, {least} or more", argument=what)


def check_quantity(what: str, value: float, *, zero: bool = False) -> None:
    """A finite number above 0, or also 0."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):
        bound = "0 or more" if zero else "above 0"
        raise UsageError(f"{what} is {value!r}; give a number {bound}", argument=what)


def check_mode(what: str, value: str) -> None:
    """Which way a metric is better."""
    if value not in ("min", "max"):
        raise UsageError(
            f'{what} is {value!r}; give "min" if smaller is better, "max" if larger is', argument=what
        )


def named(number: float, one: str) -> str:
    """`every step`, `every 100 steps`, for use in reasons."""
    if number == 1:
        return f"every {one}"
    return f"every {number} {one}s" if isinstance(number, int) else f"every {number:g} {one}s"
