"""`ckpt export`: a checkpoint as a file or folder of another program's format."""

from __future__ import annotations

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, complete_references, ranking_options, trusted_option


@command(
    "export",
    examples=[
        ("ckpt export best model.safetensors --select model", "the weights alone, under their own names"),
        ("ckpt export digits@step=100 state.npz", "all of it, for numpy"),
        ("ckpt export latest folder --format safetensors", "shards of 5 GB at most, and an index"),
    ],
)
@click.argument("reference", metavar="REF", shell_complete=complete_references)
@click.argument("target", metavar="TARGET", type=click.Path())
@click.option("--format", "wanted", metavar="NAME", help="The format. Left out: by how TARGET is called.")
@click.option("--select", metavar="PATH", help="Only this part of the state, as if it were the whole.")
@click.option("--verify/--no-verify", default=True, help="Read TARGET back and compare.  [default: verify]")
@click.option("-f", "--force", is_flag=True, help="Replace a file that is there. A folder never is.")
@ranking_options
@trusted_option
def export(
    call: Call, reference: str, target: str, wanted: str | None, select: str | None, verify: bool, force: bool
) -> None:
    """Write a checkpoint in a format of other programs.

    The formats are those of the storage backends that are installed: safetensors, npz, torch, and more with
    the adapters of frameworks. Every byte is checked on the way. TARGET appears whole or not at all, after the
    format's own library has read it back and every tensor was compared.
    """
    from ckpt_core.cli.output import Output
    from ckpt_core.cli.progress import progress_bar
    from ckpt_core.cli.records import checkpoint_record
    from ckpt_core.cli.words import counted, size
    from ckpt_core.moving import write_out

    checkpoint, _ = call.readable(reference)
    with progress_bar(call.output, "exporting") as progress:
        done = write_out(
            call.workspace.repository, checkpoint, target, format=wanted, select=select, verify=verify,
            force=force, progress=progress,
        )  # fmt: skip

    def show(output: Output) -> None:
        checked = " and read back" if verify else ""
        output.line(
            f"exported {checkpoint.experiment} step {checkpoint.step} ({checkpoint.id}) to {target} as "
            f"{done.format}: {counted(done.tensors, 'tensor')}, {size(done.nbytes)} written{checked}"
        )

    data = {
        "checkpoint": checkpoint_record(checkpoint),
        "target": str(done.path),
        "format": done.format,
        "tensors": done.tensors,
        "bytes": done.nbytes,
        "verified": verify,
    }
    call.answer("export", data, show)
