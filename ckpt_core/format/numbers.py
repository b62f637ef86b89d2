"""Metric values in JSON, which has no `nan` and no infinities."""

from __future__ import annotations

import math
from typing import Literal

from ckpt_core.errors import CorruptionError

__all__ = ["Number", "number_from", "number_to"]

Number = float | Literal["nan", "inf", "-inf"]
"""A float as documents hold it."""


def number_to(value: float) -> Number:
    """`value` itself, or `nan`, `inf`, `-inf` as text."""
    if math.isfinite(value):
        return float(value)
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def number_from(value: Number) -> float:
    """The inverse of `number_to`. Raises CorruptionError for any other text."""
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        raise CorruptionError(f"{value!r} is not a metric's value", kind="document")
    return float(value)
