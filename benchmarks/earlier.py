"""What an earlier run found, read back from its `results.json`, so that some groups can be measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.results import Curve, Goal, Results, Row
from benchmarks.timing import Samples

__all__ = ["put_in", "read"]

_LISTS = ("format", "rows", "races", "curves")


def read(path: Path) -> Results:
    """The results of a file that `report.write_json` wrote. Raises OSError, ValueError, KeyError."""
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return Results(
        [_row(row) for row in found["rows"]],
        [
            (race["group"], race["figure"], [_samples(each) for each in race["contenders"]])
            for race in found["races"]
        ],
        [
            Curve(
                curve["plot"],
                curve["line"],
                curve["x"],
                curve["y"],
                tuple((x, y) for x, y in curve["points"]),
            )
            for curve in found["curves"]
        ],
        {name: value for name, value in found.items() if name not in _LISTS},
    )


def put_in(earlier: Results, again: Results, order: tuple[str, ...]) -> Results:
    """The earlier results, with what was measured `again` in the place of the same figures. Which these are,
    when they were run and how busy the machine was then stands in the fact `again`."""
    rows = {(row.group, row.figure) for row in again.rows}
    races = {race[:2] for race in again.races}
    lines = {(curve.plot, curve.line) for curve in again.curves}
    facts = {name: again.facts[name] for name in ("date", "load_average", "options")}
    told: dict[str, list[str]] = {}
    for group, figure in sorted(rows):
        told.setdefault(group, []).append(figure)
    said: Any = earlier.facts.get("again", {})
    return Results(
        sorted(
            [row for row in earlier.rows if (row.group, row.figure) not in rows] + again.rows,
            key=lambda row: order.index(row.group),
        ),
        sorted(
            [race for race in earlier.races if race[:2] not in races] + again.races,
            key=lambda race: order.index(race[0]),
        ),
        [curve for curve in earlier.curves if (curve.plot, curve.line) not in lines] + again.curves,
        earlier.facts
        | {"again": said | {group: facts | {"figures": figures} for group, figures in told.items()}},
    )


def _row(row: dict[str, Any]) -> Row:
    goal = None
    if row["goal"] is not None:
        sign, bound, *unit = row["bound"].split(" ", 2)
        goal = Goal(row["goal"], sign, float(bound.replace(",", "")), *unit)
    return Row(
        row["group"], row["figure"],
        *(_samples(row[who]) if row[who] else None for who in ("ours", "neighbour", "limit")),
        row["value"], row["unit"], goal, row["note"],
    )  # fmt: skip


def _samples(found: dict[str, Any]) -> Samples:
    if "values" not in found:
        return Samples(found["name"], problem=found["problem"])
    # Of very many only these three were kept.
    values = found["values"] or [found["min"], found["median"], found["max"]]
    return Samples(found["name"], found["unit"], values)
