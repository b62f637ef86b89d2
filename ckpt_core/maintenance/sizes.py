"""Bytes as people read them. Their inverse, from words to bytes, is `ckpt_core.policies.parse_bytes`."""

from __future__ import annotations

__all__ = ["size"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(count: int) -> str:
    """Bytes in binary units: `512 B`, `1.5 KiB`, `120 MiB`."""
    value, unit = float(count), "B"
    for unit in _UNITS:
        # 1023.95 KiB would be shown as 1024 KiB.
        if abs(value) < 1023.95 or unit == _UNITS[-1]:
            break
        value /= 1024
    if unit == "B":
        return f"{count} B"
    digits = 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {unit}"
