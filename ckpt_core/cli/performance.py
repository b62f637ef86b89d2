"""`ckpt stats --perf`: the figures that attempts gave of themselves, at their end or with their last sign of life."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckpt_core.cli import exit_codes
from ckpt_core.cli.call import Call

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output

__all__ = ["show_performance"]

_WAITS = ("stall", "save", "load", "open")


def show_performance(call: Call) -> int:
    """Answers `ckpt stats --perf`."""
    from ckpt_core.tracker.experiments import ExperimentTracker

    found = ExperimentTracker(call.workspace).performance()
    data = {
        "attempts": [
            {"experiment": name, "attempt": view.number, "id": view.id, "status": view.status, **figures}
            for name, view, figures in found
        ]
    }
    call.answer("stats", data, lambda output: _show(output, found))
    return exit_codes.OK


def _show(output: Output, found: list[tuple[str, Any, dict[str, Any]]]) -> None:
    from ckpt_core.cli.tables import Cell, Column, Span
    from ckpt_core.cli.words import share, size

    if not found:
        output.line("no attempt has given figures yet: one at work does so after a minute")
    columns = [
        Column("EXPERIMENT", cut=True),
        Column("STATUS"),
        *(Column(f"{name.upper()} p50/p99", right=True, drop=1 + place) for place, name in enumerate(_WAITS)),
        Column("SAVED", right=True),
        Column("WRITTEN", right=True),
        Column("CACHE HITS", right=True),
        Column("WAITING", right=True, drop=6),
    ]
    rows: list[list[Cell]] = []
    for name, view, figures in found:
        waits = figures.get("latencies", {})
        sums, queues = figures.get("bytes", {}), figures.get("queues", {})
        regions = figures.get("cache", {}).get("regions", {}).values()
        asked = sum(each["hits"] + each["misses"] for each in regions)
        hits = sum(each["hits"] for each in regions)
        rows.append(
            [
                Span(name, "bold"),
                view.status,
                *(_wait(waits.get(each)) for each in _WAITS),
                size(sums.get("saved", 0)),
                size(sums.get("written", 0)),
                share(hits / asked) if asked else "",
                f"{queues.get('saves', 0)} saves, {queues.get('metrics', 0)} values",
            ]
        )
    output.table(columns, rows)


def _wait(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{_seconds(found['p50'])}/{_seconds(found['p99'])}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
