"""`ckpt reindex`: the catalog, built anew from the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpt_core.cli import exit_codes
from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output


@command(
    "reindex",
    examples=[("ckpt reindex", ""), ("ckpt reindex --catalog sqlite:////fast/catalog.db", "elsewhere")],
)
def reindex(call: Call) -> int:
    """Build the catalog anew from the store.

    Experiments with what their attempts told, checkpoints, tags, pins, metrics and what was forgotten.
    The catalog is only an index, so nothing
    can be lost by it. Exits with 3 where something of the store cannot be read.
    """
    report = call.workspace.reindex()
    data = {
        "catalog": call.workspace.index.catalog().url,
        "experiments": report.experiments,
        "checkpoints": report.checkpoints,
        "forgotten": report.forgotten,
        "tags": report.tags,
        "pins": report.pins,
        "metric_points": report.metric_points,
        "unreadable": list(report.unreadable),
    }

    def show(output: Output) -> None:
        from ckpt_core.cli.words import counted

        output.line(
            f"{counted(report.experiments, 'experiment')}, "
            f"{counted(report.checkpoints, 'checkpoint')}, {counted(report.tags, 'tag')}, "
            f"{counted(report.pins, 'pin')}, {counted(report.metric_points, 'metric value')} and "
            f"{counted(report.forgotten, 'forgotten checkpoint')} are in the catalog"
        )

    call.answer("reindex", data, show)
    for key in report.unreadable:
        call.output.warning(f"{key} cannot be read and was left out; `ckpt verify` says why")
    return exit_codes.PARTIAL if report.unreadable else exit_codes.OK
