"""Bytes and counts as people read them. From words to bytes goes `ckpt_core.policies.parse_bytes`."""

from __future__ import annotations

__all__ = ["counted", "size"]

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


def counted(count: int, word: str, plural: str | None = None) -> str:
    """`1 checkpoint`, `2,000 checkpoints`."""
    return f"{count:,} {word if count == 1 else plural or word + 's'}"
