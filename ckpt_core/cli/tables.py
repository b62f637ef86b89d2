"""Tables of plain text: columns as wide as they need to be, narrowed until they fit the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_core.cli.escape import escape, width_of

__all__ = ["Cell", "Column", "Span", "layout", "shortened"]

_GAP = "  "
_LEAST = 6


@dataclass(frozen=True, slots=True)
class Span:
    """Text in one of the styles of `output.py`."""

    text: str
    style: str


Cell = str | Span


@dataclass(frozen=True, slots=True)
class Column:
    """`right` aligns numbers; `cut` lets long cells end in `…`; where it is still too wide for the terminal,
    the columns with the highest `drop` are left out first (0: never)."""

    title: str
    right: bool = False
    cut: bool = False
    drop: int = 0


def layout(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int | None) -> list[list[Cell]]:
    """The lines of a table, heading first, in at most `width` columns where that can be (None: no limit)."""
    cells = [[_escaped(cell) for cell in row] for row in rows]
    heading: list[Cell] = [Span(column.title, "bold") for column in columns]
    table = [heading, *cells]
    shown = list(range(len(columns)))
    widths = {i: max(width_of(_text(row[i])) for row in table) for i in shown}
    while width is not None and not _fits(columns, widths, shown, width):
        dropped = max(shown, key=lambda i: (columns[i].drop, i))
        if columns[dropped].drop == 0:
            break
        shown.remove(dropped)
    if width is not None:
        _narrow(columns, widths, shown, width)
    return [
        _line([row[i] for i in shown], [columns[i] for i in shown], [widths[i] for i in shown])
        for row in table
    ]


def _fits(columns: Sequence[Column], widths: dict[int, int], shown: Sequence[int], width: int) -> bool:
    least = sum(_floor(columns[i], widths[i]) for i in shown)
    return least + len(_GAP) * (len(shown) - 1) <= width


def _floor(column: Column, width: int) -> int:
    """How narrow a column may become before another one is left out for its sake."""
    return min(width, max(_LEAST, len(column.title), min(width, 24))) if column.cut else width


def _narrow(columns: Sequence[Column], widths: dict[int, int], shown: Sequence[int], width: int) -> None:
    excess = sum(widths[i] for i in shown) + len(_GAP) * (len(shown) - 1) - width
    while excess > 0:
        widest = max((i for i in shown if columns[i].cut), key=lambda i: widths[i], default=None)
        if widest is None or widths[widest] <= _LEAST:
            return
        widths[widest] -= 1
        excess -= 1


def _line(row: Sequence[Cell], columns: Sequence[Column], widths: Sequence[int]) -> list[Cell]:
    parts: list[Cell] = []
    plain = ""  # gathered, since a table may have a thousand lines
    last = len(row) - 1
    for i, (cell, column, width) in enumerate(zip(row, columns, widths, strict=True)):
        text = shortened(_text(cell), width)
        padding = " " * (width - width_of(text))
        if column.right:
            plain, padding = plain + padding, ""
        if isinstance(cell, Span):
            parts += [plain, Span(text, cell.style)]
            plain = padding
        else:
            plain += text + padding
        plain += _GAP if i < last else ""
    parts.append(plain)
    return parts


def shortened(text: str, width: int) -> str:
    """Escaped text in at most so many columns; what is cut off ends in `…`."""
    if width_of(text) <= width:
        return text
    while text and width_of(text) > width - 1:
        text = text[:-1]
    return text + "…"


def _escaped(cell: Cell) -> Cell:
    return Span(escape(cell.text), cell.style) if isinstance(cell, Span) else escape(cell)


def _text(cell: Cell) -> str:
    return cell.text if isinstance(cell, Span) else cell
