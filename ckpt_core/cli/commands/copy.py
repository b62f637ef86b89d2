"""`ckpt copy`: checkpoints from one store to another."""

from __future__ import annotations

import click

from ckpt_core.cli import exit_codes
from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, complete_experiments, ranking_options, trusted_option
from ckpt_core.errors import UsageError


@command(
    "copy",
    examples=[
        ("ckpt copy checkpoints /archive/checkpoints", "all of it"),
        ("ckpt copy checkpoints /archive/checkpoints digits@best digits@release-1", "two checkpoints"),
        ("ckpt copy checkpoints /archive/checkpoints --experiment digits", "one experiment"),
    ],
)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.argument("references", metavar="[REF]...", nargs=-1)
@click.option(
    "--experiment",
    metavar="NAME",
    shell_complete=complete_experiments,
    help="Only this experiment's checkpoints.",
)
@ranking_options
@trusted_option
def copy(call: Call, source: str, target: str, references: tuple[str, ...], experiment: str | None) -> int:
    """Copy checkpoints from the store SRC to the store DST.

    With their tags, pins, metric series and attempts, under their own ids. Only chunks that DST lacks travel, each
    checked; what was interrupted goes on with the next call. DST is made if there is none. Exits with 3 where
    something could not be copied.
    """
    from ckpt_core.cli.output import Output
    from ckpt_core.cli.progress import progress_bar
    from ckpt_core.cli.words import counted, size
    from ckpt_core.pipeline.copying import chosen, copy_between, open_target

    if call.store is not None:
        raise UsageError("copy takes its two stores as SRC and DST: leave --store out", kind="option")
    call.store = source
    metric = call.metric_of(references[0]) if references else None
    wanted = chosen(call.workspace, references, experiment, metric=metric, mode=call.mode)
    there = open_target(call.workspace, target)
    try:
        with progress_bar(call.output, "copying") as progress:
            done = copy_between(call.workspace, there, wanted, progress=progress)
    finally:
        there.close()

    def show(output: Output) -> None:
        had = f" ({done.there} were there)" if done.there else ""
        output.line(
            f"copied {counted(len(done.checkpoints), 'checkpoint')}{had} to {target}: {size(done.nbytes)} written, "
            f"{counted(done.marks, 'tag or pin', 'tags and pins')}, "
            f"{counted(done.segments, 'piece of metric series', 'pieces of metric series')}"
        )
        for tag in done.kept:
            output.line(f"{tag} is on another checkpoint there, and stays")
        for name, reason in (*done.failed, *done.left):
            output.line(f"not copied: {name}: {reason}")

    data = {
        "source": call.workspace.repository.store.url,
        "target": there.repository.store.url,
        "checkpoints": [checkpoint.id for checkpoint in done.checkpoints],
        "there": done.there,
        "bytes": done.nbytes,
        "marks": done.marks,
        "segments": done.segments,
        "kept": list(done.kept),
        "failed": [{"checkpoint": name, "reason": reason} for name, reason in done.failed],
        "left": [{"key": key, "reason": reason} for key, reason in done.left],
    }
    call.answer("copy", data, show, quiet=[checkpoint.id for checkpoint in done.checkpoints])
    return exit_codes.PARTIAL if done.failed or done.left or done.kept else exit_codes.OK
