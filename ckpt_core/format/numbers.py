"""Metric values in JSON, which has no `nan` and no infinities."""

from __future__ import annotations

import math

from ckpt_core.errors import CorruptionError

__all__ = ["number_from", "number_to"]


def number_to(value: float) -> float | str:
    """`value` itself, or `nan`, `inf`, `-inf` as text."""
    return value if math.isfinite(value) else str(value)


def number_from(value: float | str) -> float:
    """The inverse of `number_to`. Raises CorruptionError for any other text."""
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        raise CorruptionError(f"{value!r} is not a metric's value", kind="document")
    return float(value)
