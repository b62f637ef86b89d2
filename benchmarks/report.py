"""What people read of a run: the table, the page's measured part, and `results.json` for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Results, Row
from benchmarks.timing import Samples

__all__ = ["as_json", "page", "put_between", "table", "write_json"]

HEADINGS = ("", "figure", "ours", "fastest neighbour", "limit", "value", "goal", "met")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def amount(value: float, unit: str) -> str:
    """A number that a person reads at once: `1.24 s`, `38 ms`, `24.9 MB`."""
    if unit == "s":
        for size, name in ((1.0, "s"), (1e-3, "ms")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}" if value / size < 1000 else f"{value / size:,.0f} {name}"
        return f"{value * 1e6:.3g} µs"
    if unit == "B":
        for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:.0f} B"
    shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{shown} {unit}".rstrip()


def spread(samples: Samples | None) -> str:
    """The median, and the lowest and highest behind it."""
    if samples is None or not samples:
        return ""
    median = amount(samples.median, samples.unit)
    if samples.low == samples.high:
        return median
    return f"{median} ({amount(samples.low, samples.unit)} – {amount(samples.high, samples.unit)})"


def _cells(row: Row) -> tuple[str, ...]:
    other = spread(row.neighbour)
    limit = spread(row.limit)
    return (
        row.goal.name if row.goal is not None else "",
        row.figure,
        spread(row.ours),
        f"{other}, {row.neighbour.name}" if row.neighbour is not None and other else "",
        f"{limit}, {row.limit.name}" if row.limit is not None and limit else "",
        "" if row.value is None else amount(row.value, row.unit),
        "" if row.goal is None else str(row.goal),
        "" if row.met is None else "yes" if row.met else "NO",
    )


def _lines(results: Results) -> list[tuple[str, tuple[str, ...], str]]:
    """(group, cells, note) of every row; a neighbour that is not there is a row that says so."""
    lines = [(row.group, _cells(row), row.note) for row in results.rows]
    neighbours: Any = results.facts.get("neighbours", [])
    for each in neighbours:
        if each["problem"]:
            lines.append(("neighbours", ("", each["name"], *[""] * 6), each["problem"]))
    return lines


def table(results: Results) -> str:
    """The one table, for a terminal."""
    lines = _lines(results)
    everything = [HEADINGS, *(cells for _, cells, _ in lines)]
    widths = [max(len(cells[column]) for cells in everything) for column in range(len(HEADINGS))]
    text = [_line(HEADINGS, widths)]
    group = ""
    for name, cells, note in lines:
        if name != group:
            text.append(f"── {name} ".ljust(sum(widths) + 2 * len(widths), "─"))
            group = name
        text.append(_line(cells, widths))
        if note:
            text.append(" " * (widths[0] + 4) + note)
    goals = [row for row in results.rows if row.goal is not None]
    text.append(f"{sum(bool(row.met) for row in goals)} of {len(goals)} goals are met.")
    return "\n".join([*text, *warnings(results)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def warnings(results: Results) -> list[str]:
    """Why the figures should not be believed, if so."""
    said = []
    machine: Any = results.facts.get("machine", {})
    options: Any = results.facts.get("options", {})
    loads: Any = results.facts.get("load_average", [0.0, 0.0])
    if options.get("quick"):
        said.append("A quick run: small states, few rounds. It shows that everything works, not how fast.")
    if loads[0] > 0.5 * machine.get("cores", 1):
        said.append(f"The machine was busy when the run began (load {loads[0]}): do not quote these figures.")
    if machine.get("file_system") == "tmpfs":
        said.append("The folder lies in memory, not on a disk: name another one with --work.")
    if not machine.get("o_direct", True):
        said.append("The file system does not take O_DIRECT: the raw figures are those of the page cache.")
    return said


# -- for machines --------------------------------------------------------------------------------------


def as_json(results: Results) -> dict[str, Any]:
    """Everything, the raw samples included."""

    def samples(each: Samples | None) -> dict[str, Any] | None:
        if each is None:
            return None
        if not each:
            return {"name": each.name, "problem": each.problem}
        kept = each.values if len(each.values) <= 100 else []
        return {
            "name": each.name, "unit": each.unit, "median": each.median, "min": each.low, "max": each.high,
            "count": len(each.values), "values": kept,
        }  # fmt: skip

    rows = [
        {
            "group": row.group, "figure": row.figure, "ours": samples(row.ours),
            "neighbour": samples(row.neighbour), "limit": samples(row.limit), "value": row.value,
            "unit": row.unit, "goal": row.goal.name if row.goal else None,
            "bound": str(row.goal) if row.goal else None, "met": row.met, "note": row.note,
        }
        for row in results.rows
    ]  # fmt: skip
    races = [
        {"group": group, "figure": figure, "contenders": [samples(each) for each in found]}
        for group, figure, found in results.races
    ]
    curves = [
        {
            "plot": curve.plot,
            "line": curve.line,
            "x": curve.x_label,
            "y": curve.y_label,
            "points": curve.points,
        }
        for curve in results.curves
    ]
    return {"format": 1, **results.facts, "rows": rows, "races": races, "curves": curves}


def write_json(results: Results, path: Path) -> None:
    """`results.json`."""
    path.write_text(json.dumps(as_json(results), indent=1, ensure_ascii=False) + "\n", "utf-8")


# -- for the page --------------------------------------------------------------------------------------


def page(results: Results, images: Sequence[str]) -> str:
    """The measured part of `docs/performance.md`, in Markdown."""
    facts: Any = results.facts
    machine = facts["machine"]
    text = [
        f"Measured on {facts['date'][:10]} on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB of memory, {machine['file_system']}, {machine['system']}, Python "
        f"{machine['python']}; {facts['options']['rounds']} rounds, load at the beginning "
        f"{facts['load_average'][0]} and at the end {facts['load_average'][1]}.",
        "",
        ", ".join(f"{name} {version}" for name, version in facts["versions"].items()) + ".",
        "",
        *(
            f"Measured again on {of['date'][:10]}, {of['options']['rounds']} rounds, load {of['load_average'][0]}: "
            f"{name} ({'; '.join(of['figures'])}).\n"
            for name, of in facts.get("again", {}).items()
        ),
        *(f"**{said}**\n" for said in warnings(results)),
        "| | figure | ours | fastest neighbour | limit | value | goal | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for _, cells, note in _lines(results):
        shown = [*cells]
        shown[1] += f"<br>{note}" if note else ""
        text.append("| " + " | ".join(cell.replace("|", "\\|") for cell in shown) + " |")
    text += ["", *(f"![{name}](img/{name})" for name in images), "", "Every contender:", ""]
    text += ["| figure | contender | median | lowest | highest |", "|---|---|---|---|---|"]
    for group, figure, found in results.races:
        for each in found:
            numbers = (
                [amount(value, each.unit) for value in (each.median, each.low, each.high)] if each else []
            )
            cells = (f"{group}: {figure}", each.name, *(numbers or [each.problem or "", "", ""]))
            text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def put_between(text: str, path: Path) -> None:
    """Puts the measured part into a page, between its two marks. Raises ValueError where they are not there."""
    whole = path.read_text("utf-8")
    if BEGIN not in whole or END not in whole:
        raise ValueError(f"{path.name} has no place for what was measured: {BEGIN} and {END}")
    head, _, rest = whole.partition(BEGIN)
    _, _, tail = rest.partition(END)
    path.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", "utf-8")
