"""`ckpt metrics`: what an experiment has logged: a line a metric, or every value of some, or a plot of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, complete_experiments

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.model import MetricPoint
    from ckpt_core.tracker.series import MetricSeries

_WIDTH = 72
_LEAST = 20


@command(
    "metrics",
    examples=[
        ("ckpt metrics digits", "last, smallest and largest value of each"),
        ("ckpt metrics digits loss --plot", "the series, drawn"),
        ("ckpt metrics digits loss --json", "every point of it"),
        ("ckpt metrics digits loss --from 1000 --to 2000", "a part of it"),
    ],
)
@click.argument("experiment", shell_complete=complete_experiments)
@click.argument("names", metavar="[METRIC]...", nargs=-1)
@click.option("--plot", is_flag=True, help="Draw the series with text.")
@click.option("--from", "first", type=int, metavar="STEP", help="Only from this step on.")
@click.option("--to", "last", type=int, metavar="STEP", help="Only up to this step.")
def metrics(
    call: Call, experiment: str, names: tuple[str, ...], plot: bool, first: int | None, last: int | None
) -> None:
    """Show what an experiment has logged.

    Of its newest training effort, through all resumes; of each step what was logged last. Without a METRIC
    each in a line; with one every value of it.
    """
    from ckpt_core.errors import NotFoundError
    from ckpt_core.tracker.experiments import ExperimentTracker

    tracker = ExperimentTracker(call.workspace)
    tracker.experiment(experiment)
    known = tracker.metrics(experiment)
    unknown = [name for name in names if name not in known]
    if unknown:
        said = f"it has {', '.join(known)}" if known else "it has logged nothing"
        raise NotFoundError(f"{experiment} has no metric {unknown[0]!r}: {said}", kind="metric")
    found = [tracker.metric(experiment, name).between(first, last) for name in names or known]
    found = [series for series in found if names or len(series)]

    def show(output: Output) -> None:
        if plot:
            _plot(output, found)
        elif names:
            _values(output, found)
        else:
            _overview(output, experiment, found)

    call.answer(
        "metrics",
        lambda: {
            "experiment": experiment,
            "metrics": [_record(series, points=bool(names)) for series in found],
        },
        show,
        quiet=[series.name for series in found],
    )


def _record(series: MetricSeries, *, points: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": series.name, "count": len(series)}
    facts |= {what: _point(point) for what, point in series.summary.items()}
    if points:
        facts["points"] = [_point(point) for point in series]
    return facts


def _point(point: MetricPoint | None) -> dict[str, Any] | None:
    from ckpt_core import clock

    if point is None:
        return None
    return {"step": point.step, "value": point.value, "at": clock.to_text(point.at), "attempt": point.attempt}


def _overview(output: Output, experiment: str, found: list[MetricSeries]) -> None:
    from ckpt_core.cli.tables import Cell, Column, Span
    from ckpt_core.cli.words import number

    def cells(point: MetricPoint | None) -> list[Cell]:
        return ["", ""] if point is None else [number(point.value), Span(str(point.step), "dim")]

    if not found:
        output.line(f"{experiment} has logged nothing")
    columns = [Column("METRIC", cut=True), Column("POINTS", right=True, drop=1)]
    for title, drop in (("LAST", 0), ("MIN", 0), ("MAX", 0)):
        columns += [Column(title, right=True, drop=drop), Column("AT STEP", right=True, drop=2)]
    rows: list[list[Cell]] = [
        [
            Span(series.name, "bold"),
            str(len(series)),
            *(cell for point in series.summary.values() for cell in cells(point)),
        ]
        for series in found
    ]
    output.table(columns, rows)


def _values(output: Output, found: list[MetricSeries]) -> None:
    from ckpt_core.cli.tables import Cell, Column, Span
    from ckpt_core.cli.words import iso, number

    columns = [
        Column("METRIC", cut=True),
        Column("STEP", right=True),
        Column("VALUE", right=True),
        Column("AT"),
    ]
    rows: list[list[Cell]] = [
        [series.name, str(point.step), number(point.value), Span(iso(point.at), "dim")]
        for series in found
        for point in series
    ]
    output.table(columns, rows)


def _plot(output: Output, found: list[MetricSeries]) -> None:
    from ckpt_core.cli.plot import draw
    from ckpt_core.cli.tables import Span
    from ckpt_core.cli.words import counted

    width = max(_LEAST, min(_WIDTH, (output.width or _WIDTH + 14) - 14))
    dots = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    for place, series in enumerate(found):
        if place:
            output.line()
        output.line(Span(series.name, "bold"), f"  {counted(len(series), 'point')}")
        lines = draw(series.steps.tolist(), series.values.tolist(), width=width, dots=dots)
        for line in lines or ["nothing that could be drawn"]:
            output.line(line)
