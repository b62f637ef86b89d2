"""`ckpt undelete`: brings forgotten checkpoints back, or lists those that can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.model import Checkpoint


@command(
    "undelete",
    examples=[
        ("ckpt undelete", "which can be brought back, and for how long"),
        ("ckpt undelete digits@step=100 01KAS3V2", "these two"),
    ],
)
@click.argument("references", metavar="[REF]...", nargs=-1)
def undelete(call: Call, references: tuple[str, ...]) -> None:
    """Bring forgotten checkpoints back.

    Each is named as [EXPERIMENT@]step=N or by the first characters of its id, and comes back with its
    tags and pins. Without REF, lists what can be brought back. Exits with 11 while somebody prunes.
    """
    from ckpt_core.cli.records import checkpoint_record
    from ckpt_core.pipeline import undo
    from ckpt_core.pipeline.resolve import choose_forgotten, split_reference

    found = undo.forgotten(call.workspace)
    if not references:
        records = [checkpoint_record(c) | {"seconds_left": max(left, 0.0)} for c, left in found]
        call.answer(
            "undelete", {"can_be_brought_back": records, "back": []}, lambda output: _show(output, found),
            quiet=[c.id for c, _ in found],
        )  # fmt: skip
        return
    # All are found before any is touched: a slip in the last one changes nothing.
    chosen: dict[str, Checkpoint] = {}
    for reference in references:
        experiment, rest = split_reference(reference)
        among = [c for c, _ in found if experiment in (None, c.experiment)]
        checkpoint = choose_forgotten(among, rest)
        chosen[checkpoint.id] = checkpoint
    back = undo.undelete(call.workspace, list(chosen.values()))

    def show(output: Output) -> None:
        for c in back:
            marks = "".join(f", tagged {tag}" for tag in c.tags) + (", pinned" if c.pinned else "")
            output.line(f"brought back {c.experiment} step {c.step} ({c.id}){marks}")
        output.note("a retention policy may let them go again; `ckpt pin` keeps them from it")

    data: dict[str, Any] = {"can_be_brought_back": [], "back": [checkpoint_record(c) for c in back]}
    call.answer("undelete", data, show, quiet=[c.id for c in back])


def _show(output: Output, found: list[tuple[Checkpoint, float]]) -> None:
    from ckpt_core.cli.records import short_ids
    from ckpt_core.cli.tables import Cell, Column, Span
    from ckpt_core.cli.words import ago, seconds

    if not found:
        output.line("nothing can be brought back")
        return
    short = short_ids(checkpoint.id for checkpoint, _ in found)
    rows: list[list[Cell]] = [
        [
            Span(short[c.id], "yellow"),
            c.experiment,
            str(c.step),
            ago(c.created_at),
            seconds(left) if left > 0 else "until the next prune",
        ]
        for c, left in found
    ]
    columns = [
        Column("ID"),
        Column("EXPERIMENT", cut=True),
        Column("STEP", right=True),
        Column("SAVED"),
        Column("STAYS"),
    ]
    output.table(columns, rows)
