"""`ckpt ls`: the checkpoints of a store, the newest last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, complete_experiments, ranking_options

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.model import Checkpoint

_SHOWN = 100
_SHOWN_METRICS = 3


@command(
    "ls",
    examples=[
        ("ckpt ls", ""),
        ("ckpt ls digits --last 5", "the newest five of one experiment"),
        ("ckpt ls --tag 'release-*'", "those with such a tag"),
        ("ckpt ls digits --metric accuracy --mode max", "the best first"),
        ("ckpt ls digits -q | tail -n 1", "the id of the newest"),
    ],
)
@click.argument("experiments", metavar="[EXPERIMENT]...", nargs=-1, shell_complete=complete_experiments)
@click.option(
    "-n", "--last", type=click.IntRange(1), metavar="N", help="Only the newest N of each experiment."
)
@click.option("--tag", "pattern", metavar="PATTERN", help="Only those with a tag that matches (*, ?, [...]).")
@ranking_options
@click.option(
    "--all", "everything", is_flag=True, help="All of them, not only the newest 100 of each experiment."
)
def ls(
    call: Call, experiments: tuple[str, ...], last: int | None, pattern: str | None, everything: bool
) -> None:
    """List checkpoints, the newest last.

    A table shows the newest 100 of each experiment, unless told otherwise; --json and --quiet tell all.

    SIZE is what a checkpoint holds, NEW what had to be written for it: the rest was in the store already.
    With --metric those that carry the metric come, the best first.
    """
    from ckpt_core.cli.listing import last_of_each, listed, newest_of_each
    from ckpt_core.cli.records import checkpoint_record

    older: dict[str, int] = {}
    if pattern is None and call.metric is None:
        shown = None if everything or call.json or call.quiet else _SHOWN
        every, older = newest_of_each(call, experiments, last or shown)
    else:
        every = listed(call, experiments)
    newest = {c.id for c in _newest_of_each(every)}
    chosen = [c for c in every if pattern is None or any(fnmatchcase(tag, pattern) for tag in c.tags)]
    if last is not None:
        chosen = last_of_each(chosen, last)
    if call.metric is not None:
        from ckpt_core.pipeline.resolve import best_first

        chosen = best_first(chosen, call.metric, call.mode) if chosen else []
    call.answer(
        "ls",
        lambda: {"checkpoints": [checkpoint_record(c) | {"latest": c.id in newest} for c in chosen]},
        lambda output: _show(output, chosen, newest, call.metric, bool(every)),
        quiet=[c.id for c in chosen],
    )
    if last is None:
        for name, count in older.items():
            call.output.note(f"{count} older ones of {name} are not shown: ckpt ls {name} --all, or --last N")


def _newest_of_each(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    newest: dict[str, Checkpoint] = {}
    for checkpoint in checkpoints:
        known = newest.get(checkpoint.experiment)
        if known is None or checkpoint.order > known.order:
            newest[checkpoint.experiment] = checkpoint
    return list(newest.values())


def _show(
    output: Output, chosen: Sequence[Checkpoint], newest: set[str], metric: str | None, any_at_all: bool
) -> None:
    from ckpt_core.cli.records import marks, short_ids
    from ckpt_core.cli.tables import Cell, Column, Span
    from ckpt_core.cli.words import ago, iso, number, size

    if not chosen:
        output.line("no checkpoint has such a tag" if any_at_all else "the store has no checkpoints yet")
        return
    counts = Counter(name for c in chosen for name in c.metrics)
    names = (
        [metric]
        if metric
        else [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    )
    names = names[:_SHOWN_METRICS]
    short = short_ids(c.id for c in chosen)
    columns = [
        Column("ID"),
        Column("EXPERIMENT", cut=True),
        Column("ATTEMPT", right=True, drop=3),
        Column("STEP", right=True),
        Column("SAVED"),
        Column("AT", drop=9),
        *(Column(name, right=True, cut=True, drop=6 + i if i else 2) for i, name in enumerate(names)),
        Column("SIZE", right=True, drop=1),
        Column("NEW", right=True, drop=5),
        Column("MARKS", cut=True),
    ]
    rows: list[list[Cell]] = [
        [
            Span(short[c.id], "yellow"),
            c.experiment,
            str(c.attempt.number),
            str(c.step),
            ago(c.created_at),
            Span(iso(c.created_at), "dim"),
            *(number(c.metrics[name]) if name in c.metrics else "" for name in names),
            size(c.logical_bytes),
            size(c.written_bytes),
            Span(", ".join(marks(c, latest=c.id in newest)), "green"),
        ]
        for c in chosen
    ]
    output.table(columns, rows)
