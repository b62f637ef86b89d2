"""`ckpt tag`: names that people give to checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, complete_references, ranking_options
from ckpt_core.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.model import Checkpoint


@command(
    "tag",
    examples=[
        ("ckpt tag", "list the tags"),
        ("ckpt tag latest release-1", ""),
        ("ckpt tag digits@step=1000 release-1", "moves the tag, if the experiment has it already"),
        ("ckpt tag --delete digits@release-1", ""),
    ],
)
@click.argument("reference", metavar="[REF]", required=False, shell_complete=complete_references)
@click.argument("names", metavar="[TAG]...", nargs=-1)
@click.option("-d", "--delete", is_flag=True, help="Delete tags, each given as [EXPERIMENT@]TAG.")
@ranking_options
def tag(call: Call, reference: str | None, names: tuple[str, ...], delete: bool) -> None:
    """Tag a checkpoint, delete tags, or list them.

    A tag names one checkpoint of its experiment; set again, it moves. It keeps nothing from being
    forgotten unless a policy says so (`ckpt forget --keep-tagged`); `ckpt pin` does.
    """
    if delete:
        _delete(call, tuple(name for name in (reference, *names) if name is not None))
    elif reference is None:
        _list(call)
    elif not names:
        raise UsageError(f"name the tag, as in `ckpt tag {reference} release-1`", kind="usage")
    else:
        _set(call, reference, names)


def _set(call: Call, reference: str, names: tuple[str, ...]) -> None:
    from ckpt_core.cli.records import checkpoint_record
    from ckpt_core.format.names import check_tag

    for name in names:
        check_tag(name)
    checkpoint = call.resolve(reference)
    had = {t: c for c in call.workspace.index.checkpoints(checkpoint.experiment) for t in c.tags}
    moved = {name: had[name] for name in names if name in had and had[name].id != checkpoint.id}
    for name in names:
        call.workspace.tag(checkpoint, name)

    def show(output: Output) -> None:
        for name in names:
            before = f", moved from step {moved[name].step} ({moved[name].id})" if name in moved else ""
            output.line(f"{checkpoint.experiment}@{name} is step {checkpoint.step} ({checkpoint.id}){before}")

    data = {
        "checkpoint": checkpoint_record(checkpoint),
        "tags": list(names),
        "moved_from": {name: c.id for name, c in moved.items()},
    }
    call.answer("tag", data, show)


def _delete(call: Call, given: tuple[str, ...]) -> None:
    from ckpt_core.pipeline.resolve import split_reference

    if not given:
        raise UsageError("name the tags to delete, as in `ckpt tag --delete digits@release-1`", kind="usage")
    every = call.workspace.index.checkpoints()
    doomed: list[tuple[str, str, str]] = []
    for text in given:
        experiment, name = split_reference(text)
        having = [c for c in every if name in c.tags and experiment in (None, c.experiment)]
        if not having:
            raise NotFoundError(f"there is no tag {text!r}; `ckpt tag` lists them", kind="tag", tag=text)
        if len(having) > 1:
            raise UsageError(
                f"{name!r} is in several experiments: write {having[0].experiment}@{name}", kind="ambiguous"
            )
        doomed.append((having[0].experiment, name, having[0].id))
    for experiment, name, _ in doomed:
        call.workspace.untag(experiment, name)

    def show(output: Output) -> None:
        for experiment, name, checkpoint in doomed:
            output.line(f"deleted {experiment}@{name}, which was {checkpoint}")

    rows = [
        {"experiment": experiment, "tag": name, "was": checkpoint} for experiment, name, checkpoint in doomed
    ]
    call.answer("tag", {"deleted": rows}, show)


def _list(call: Call) -> None:
    every = call.workspace.index.checkpoints()
    rows = sorted((c.experiment, name, c) for c in every for name in c.tags)
    call.answer(
        "tag",
        {"tags": [{"experiment": e, "tag": name, "id": c.id, "step": c.step} for e, name, c in rows]},
        lambda output: _show(output, rows),
        quiet=[f"{e}@{name}" for e, name, _ in rows],
    )


def _show(output: Output, rows: list[tuple[str, str, Checkpoint]]) -> None:
    from ckpt_core.cli.tables import Column, Span
    from ckpt_core.cli.words import ago

    if not rows:
        output.line("there are no tags; `ckpt tag latest NAME` sets one")
    columns = [Column("TAG", cut=True), Column("STEP", right=True), Column("ID"), Column("SAVED", drop=1)]
    output.table(
        columns,
        [
            [Span(f"{e}@{name}", "green"), str(c.step), Span(c.id, "yellow"), ago(c.created_at)]
            for e, name, c in rows
        ],
    )
