"""`ckpt pin` and `ckpt unpin`: checkpoints that no retention policy may delete."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, complete_references, ranking_options

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output


@command("pin", examples=[("ckpt pin digits@best --metric val_loss", ""), ("ckpt pin step=100 step=200", "")])
@click.argument("references", metavar="REF...", nargs=-1, required=True, shell_complete=complete_references)
@ranking_options
def pin(call: Call, references: tuple[str, ...]) -> None:
    """Keep checkpoints from every retention policy."""
    _set(call, references, True)


@command("unpin", examples=[("ckpt unpin digits@step=100", "")])
@click.argument("references", metavar="REF...", nargs=-1, required=True, shell_complete=complete_references)
@ranking_options
def unpin(call: Call, references: tuple[str, ...]) -> None:
    """Leave checkpoints to the retention policies again."""
    _set(call, references, False)


def _set(call: Call, references: tuple[str, ...], pinned: bool) -> None:
    from ckpt_core.cli.records import checkpoint_record

    # All are found before any is touched: a slip in the last one changes nothing.
    chosen = list({c.id: c for c in map(call.resolve, references)}.values())
    word = "pin" if pinned else "unpin"
    for checkpoint in chosen:
        if pinned:
            call.workspace.pin(checkpoint)
        else:
            call.workspace.unpin(checkpoint)

    def show(output: Output) -> None:
        for c in chosen:
            already = ", as it was" if c.pinned == pinned else ""
            output.line(f"{word}ned {c.experiment} step {c.step} ({c.id}){already}")

    records = [checkpoint_record(c) | {"pinned": pinned, "changed": c.pinned != pinned} for c in chosen]
    call.answer(word, {"checkpoints": records}, show)
