"""`ckpt parity`: sidecars for the packs that have none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckpt_core.cli import exit_codes
from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output


@command(
    "parity",
    examples=[("ckpt parity", "10 percent"), ("ckpt parity --percent 25", "heals longer bursts of damage")],
)
@click.option(
    "--percent",
    type=click.IntRange(1, 100),
    default=10,
    show_default=True,
    help="How much of a pack can be lost.",
)
def parity(call: Call, percent: int) -> int:
    """Write parity for every pack that has none.

    Each pack is read and checked first; a damaged one gets none. Saves of a manager with parity= do this
    by themselves for what they write. Exits with 4 where a pack is damaged.
    """
    done = call.workspace.protect(percent)
    data = {
        "percent": percent,
        "packs": done.packs,
        "bytes": done.bytes_written,
        "damaged": list(done.damaged),
    }

    def show(output: Output) -> None:
        from ckpt_core.cli.words import counted, size

        output.line(f"parity of {counted(done.packs, 'pack')} written, {size(done.bytes_written)}")
        if done.damaged:
            output.line(f"{counted(len(done.damaged), 'pack')} damaged: `ckpt repair`, then this again")

    call.answer("parity", data, show, quiet=done.damaged)
    return exit_codes.CORRUPT if done.damaged else exit_codes.OK
