"""`ckpt import`: what a file or folder of another program holds, as a checkpoint."""

from __future__ import annotations

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, complete_experiments
from ckpt_core.errors import UsageError


@command(
    "import",
    examples=[
        ("ckpt import model.safetensors pretrained", "as the checkpoint pretrained@latest"),
        ("ckpt import weights.pt digits --step 500 --under model --tag from-torch", ""),
    ],
)
@click.argument("source", metavar="SOURCE", type=click.Path())
@click.argument("experiment", metavar="EXPERIMENT", shell_complete=complete_experiments)
@click.option("--step", default=0, show_default=True, help="The step that it is to have.")
@click.option("--format", "wanted", metavar="NAME", help="The format. Left out: by what SOURCE is.")
@click.option("--under", metavar="PATH", help="Where in the state it is to stand, as `model`.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag for it. May be repeated.")
@click.option(
    "--with-metric", "metrics", multiple=True, metavar="NAME=VALUE", help="A metric. May be repeated."
)
@click.option("--verify/--no-verify", default=True, help="Read it back and compare.  [default: verify]")
def import_(
    call: Call,
    source: str,
    experiment: str,
    step: int,
    wanted: str | None,
    under: str | None,
    tags: tuple[str, ...],
    metrics: tuple[str, ...],
    verify: bool,
) -> None:
    """Save a file or folder of another program as a checkpoint.

    The formats are those of the storage backends that are installed. Nothing is unpickled. The store is made if
    there is none at the place that --store or CKPT_STORE names.
    """
    from ckpt_core.cli.output import Output
    from ckpt_core.cli.progress import progress_bar
    from ckpt_core.cli.records import checkpoint_record
    from ckpt_core.cli.words import counted, size
    from ckpt_core.config import environment
    from ckpt_core.manager import CheckpointManager
    from ckpt_core.moving import import_checkpoint

    values = dict(_metric(text) for text in metrics)
    catalog = call.catalog or environment("CKPT_CATALOG")
    with (
        CheckpointManager(call.store_location, experiment=experiment, catalog=catalog) as manager,
        progress_bar(call.output, "importing") as progress,
    ):
        checkpoint = import_checkpoint(
            manager, source, step=step, format=wanted, under=under, metrics=values, tags=tags, verify=verify,
            progress=progress,
        )  # fmt: skip

    def show(output: Output) -> None:
        checked = ", read back and compared" if verify else ""
        output.line(
            f"imported {source} as {checkpoint.experiment} step {checkpoint.step} ({checkpoint.id}): "
            f"{counted(checkpoint.tensor_count, 'tensor')}, {size(checkpoint.logical_bytes)}{checked}"
        )

    data = {"checkpoint": checkpoint_record(checkpoint), "source": source, "verified": verify}
    call.answer("import", data, show, quiet=[checkpoint.id])


def _metric(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise UsageError(f"--with-metric {text!r} should read NAME=VALUE", kind="metric") from None
