"""`ckpt stats`: what a store holds and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli import exit_codes
from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.maintenance.stats import StoreStats


@command(
    "stats",
    examples=[
        ("ckpt stats", ""),
        ("ckpt stats --largest 20", "more of the largest tensors"),
        ("ckpt stats --perf", "how saves, loads and questions of each experiment have fared"),
    ],
)
@click.option(
    "--largest",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    metavar="N",
    help="How many of the largest tensors to list.",
)
@click.option(
    "--perf", is_flag=True, help="Show latencies, hit rates, bytes and queues of the attempts instead."
)
def stats(call: Call, largest: int, perf: bool) -> int:
    """Show what the store holds and what it costs.

    Logical against stored bytes, by experiment; the trash; the largest tensors. Tensors are those of
    the newest checkpoint of each experiment. With --perf the figures that the newest attempt of each
    experiment gave at its end, or with its last sign of life (one a minute).
    """
    if perf:
        from ckpt_core.cli.performance import show_performance

        return show_performance(call)
    from ckpt_core.maintenance.stats import gather

    index = call.workspace.index
    found = gather(call.workspace.repository, index.checkpoints(), packs_of=index.packs_of(), largest=largest)
    call.answer("stats", _record(found), lambda output: _show(output, found))
    for key in found.unreadable:
        call.output.warning(f"{key} cannot be read and is not counted; `ckpt verify` says why")
    return exit_codes.PARTIAL if found.unreadable else exit_codes.OK


def _record(found: StoreStats) -> dict[str, Any]:
    return {
        "checkpoints": found.checkpoints,
        "logical_bytes": found.logical_bytes,
        "stored_bytes": found.stored_bytes,
        "ratio": found.ratio,
        "packs": found.packs,
        "dead_bytes": found.dead_bytes,
        "trash": {"checkpoints": found.trash, "bytes": found.trash_bytes},
        "parity_bytes": found.parity_bytes,
        "other_bytes": found.other_bytes,
        "free_bytes": found.free_bytes,
        "experiments": [
            {
                "name": e.name,
                "checkpoints": e.checkpoints,
                "logical_bytes": e.logical_bytes,
                "stored_bytes": e.stored_bytes,
                "ratio": e.ratio,
                "packs": e.packs,
            }
            for e in found.experiments
        ],
        "tensors": [
            {
                "experiment": t.experiment,
                "path": t.path,
                "dtype": t.spec.dtype,
                "shape": list(t.spec.shape),
                "bytes": t.nbytes,
            }
            for t in found.tensors
        ],
        "unreadable": list(found.unreadable),
    }


def _show(output: Output, found: StoreStats) -> None:
    from ckpt_core.cli.tables import Column, Span
    from ckpt_core.cli.words import counted, size

    def row(name: str, text: str) -> None:
        output.line(Span(f"{name:<9}", "bold"), text)

    def ratio(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}x"

    row("logical", f"{size(found.logical_bytes)} in {counted(found.checkpoints, 'checkpoint')}")
    row(
        "stored",
        f"{size(found.stored_bytes)} in {counted(found.packs, 'pack')}"
        + (f": {ratio(found.ratio)} less" if found.ratio else ""),
    )
    if found.parity_bytes:
        row("parity", size(found.parity_bytes))
    row("beside", f"{size(found.other_bytes)} of manifests, tags, pins and metrics")
    if found.trash:
        row(
            "trash",
            f"{counted(found.trash, 'forgotten checkpoint')}, {size(found.trash_bytes)} that only they hold",
        )
    if found.dead_bytes:
        row("dead", f"{size(found.dead_bytes)} in packs that no checkpoint names; `ckpt prune` reclaims them")
    if found.free_bytes is not None:
        row("free", size(found.free_bytes))
    if found.experiments:
        output.line()
    output.table(
        [
            Column("EXPERIMENT", cut=True),
            Column("CHECKPOINTS", right=True),
            Column("LOGICAL", right=True),
            Column("STORED", right=True),
            Column("RATIO", right=True),
            Column("PACKS", right=True, drop=1),
        ],
        [
            [
                e.name,
                str(e.checkpoints),
                size(e.logical_bytes),
                size(e.stored_bytes),
                ratio(e.ratio),
                str(e.packs),
            ]
            for e in found.experiments
        ],
    )
    if found.tensors:
        output.line()
    output.table(
        [
            Column("LARGEST TENSOR", cut=True),
            Column("EXPERIMENT", cut=True, drop=1),
            Column("TYPE"),
            Column("SHAPE", cut=True),
            Column("SIZE", right=True),
        ],
        [
            [t.path, t.experiment, t.spec.dtype, str(list(t.spec.shape)), size(t.nbytes)]
            for t in found.tensors
        ],
    )
