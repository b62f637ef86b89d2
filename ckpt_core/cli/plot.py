"""A series drawn with text: braille dots, eight to a character; `*` where stdout cannot show them."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["draw"]

# Unicode, chapter Braille Patterns: the bit of each dot, by row and column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BLANK = 0x2800


def draw(
    steps: Sequence[float], values: Sequence[float], *, width: int = 72, height: int = 12, dots: bool = True
) -> list[str]:
    """The lines of a plot of finite values over steps, both axes with their ends. `width` and `height` are those of
    the field of dots alone, in characters."""
    points = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    if not points:
        return []
    across, down = (2 * width, 4 * height) if dots else (width, height)
    left, right = min(s for s, _ in points), max(s for s, _ in points)
    low, high = min(v for _, v in points), max(v for _, v in points)
    field = [[0] * width for _ in range(height)]
    before: tuple[int, int] | None = None
    for step, value in points:
        x = _place(step, left, right, across)
        y = down - 1 - _place(value, low, high, down)
        for at, level in _joined(before, (x, y)):
            if dots:
                field[level // 4][at // 2] |= _DOTS[level % 4][at % 2]
            else:
                field[level][at] = 1
        before = (x, y)
    labels = {0: f"{high:.5g}", height - 1: f"{low:.5g}"} if height > 1 else {0: f"{high:.5g}"}
    margin = max(map(len, labels.values()))
    drawn = [
        f"{labels.get(row, ''):>{margin}} │{_line(cells, dots)}".rstrip() for row, cells in enumerate(field)
    ]
    ends = f"{left:.0f}", f"{right:.0f}"
    gap = " " * max(1, width - len(ends[0]) - len(ends[1]))
    axis = [f"{'':>{margin}} └{'─' * width}", f"{'':>{margin}}  {ends[0]}{gap}{ends[1]}"]
    lines = [*drawn, *axis]
    return lines if dots else [line.replace("│", "|").replace("└", "+").replace("─", "-") for line in lines]


def _place(value: float, low: float, high: float, cells: int) -> int:
    if high <= low:
        return (cells - 1) // 2
    # Halved, since the width of the whole range of floats is no float.
    share = (value / 2 - low / 2) / (high / 2 - low / 2)
    return min(cells - 1, max(0, round(share * (cells - 1))))


def _joined(before: tuple[int, int] | None, here: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots of the straight line from the point before to this one."""
    if before is None:
        return [here]
    (x0, y0), (x1, y1) = before, here
    length = max(abs(x1 - x0), abs(y1 - y0), 1)
    return [
        (x0 + round((x1 - x0) * part / length), y0 + round((y1 - y0) * part / length))
        for part in range(length + 1)
    ]


def _line(cells: Sequence[int], dots: bool) -> str:
    return "".join(
        (chr(_BLANK + cell) if cell else " ") if dots else ("*" if cell else " ") for cell in cells
    )
