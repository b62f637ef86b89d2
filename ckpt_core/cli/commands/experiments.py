"""`ckpt experiments`: what there is in a store, an experiment a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.model import Checkpoint, ExperimentSummary


@command("experiments", examples=[("ckpt experiments", ""), ("ckpt experiments -q", "the names alone")])
def experiments(call: Call) -> None:
    """List experiments.

    HOLDS is what its checkpoints hold together, WRITTEN what had to be written for them.
    """
    found = _summaries(call)
    call.answer(
        "experiments",
        {"experiments": [_record(summary) for summary in found]},
        lambda output: _show(output, found),
        quiet=[summary.name for summary in found],
    )


def _summaries(call: Call) -> list[ExperimentSummary]:
    from ckpt_core.errors import CatalogError, FormatError

    index = call.workspace.index
    try:
        index.synchronise()
        return index.catalog().experiments()
    except (CatalogError, FormatError):
        return _from_checkpoints(index.checkpoints())


def _from_checkpoints(checkpoints: list[Checkpoint]) -> list[ExperimentSummary]:
    """Without a catalog: all but experiments of which every checkpoint was forgotten."""
    from ckpt_core.model import ExperimentSummary

    groups: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        groups.setdefault(checkpoint.experiment, []).append(checkpoint)
    return [
        ExperimentSummary(
            name=name,
            checkpoints=len(group),
            attempts=len({c.attempt.id for c in group}),
            first_at=min(c.created_at for c in group),
            last_at=max(c.created_at for c in group),
            last_step=max(group, key=lambda c: c.order).step,
            logical_bytes=sum(c.logical_bytes for c in group),
            written_bytes=sum(c.written_bytes for c in group),
        )
        for name, group in sorted(groups.items())
    ]


def _record(summary: ExperimentSummary) -> dict[str, object]:
    from ckpt_core import clock

    return {
        "name": summary.name,
        "checkpoints": summary.checkpoints,
        "attempts": summary.attempts,
        "first_at": clock.to_text(summary.first_at) if summary.first_at else None,
        "last_at": clock.to_text(summary.last_at) if summary.last_at else None,
        "last_step": summary.last_step,
        "logical_bytes": summary.logical_bytes,
        "written_bytes": summary.written_bytes,
    }


def _show(output: Output, found: list[ExperimentSummary]) -> None:
    from ckpt_core.cli.tables import Cell, Column, Span
    from ckpt_core.cli.words import ago, iso, size

    if not found:
        output.line("the store has no experiments yet")
    columns = [
        Column("EXPERIMENT", cut=True),
        Column("CHECKPOINTS", right=True),
        Column("ATTEMPTS", right=True, drop=2),
        Column("LAST STEP", right=True),
        Column("LAST SAVED"),
        Column("AT", drop=3),
        Column("HOLDS", right=True),
        Column("WRITTEN", right=True, drop=1),
    ]
    rows: list[list[Cell]] = [
        [
            Span(summary.name, "bold"),
            str(summary.checkpoints),
            str(summary.attempts),
            "" if summary.last_step is None else str(summary.last_step),
            ago(summary.last_at) if summary.last_at else "",
            Span(iso(summary.last_at), "dim") if summary.last_at else "",
            size(summary.logical_bytes),
            size(summary.written_bytes),
        ]
        for summary in found
    ]
    output.table(columns, rows)
