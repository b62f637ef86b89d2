"""`ckpt log`: how an experiment came about, as a graph of attempts, resumes and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, complete_experiments, ranking_options

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.model import Attempt, Checkpoint


@command(
    "log",
    examples=[
        ("ckpt log", ""),
        ("ckpt log digits", "one experiment"),
        ("ckpt log digits -n 10 --metric val_loss", "its newest ten, with this metric and its best"),
    ],
)
@click.argument("experiments", metavar="[EXPERIMENT]...", nargs=-1, shell_complete=complete_experiments)
@click.option(
    "-n", "--last", type=click.IntRange(1), metavar="N", help="Only the newest N of each experiment."
)
@ranking_options
def log(call: Call, experiments: tuple[str, ...], last: int | None) -> None:
    """Show the history of experiments as a graph.

    The newest comes first. Each * is a checkpoint; | leads to the one that it was trained on from, :
    does so where checkpoints between them are gone. Where a line ends, a training began from nothing.
    """
    from ckpt_core.cli.listing import last_of_each, listed

    found = listed(call, experiments)
    groups: dict[str, list[Checkpoint]] = {}
    for checkpoint in found:
        groups.setdefault(checkpoint.experiment, []).append(checkpoint)
    shown = {c.id for c in (found if last is None else last_of_each(found, last))}
    call.answer(
        "log",
        {"experiments": [_record(name, group, shown) for name, group in groups.items()]},
        lambda output: _show(output, groups, shown, call),
        quiet=[c.id for group in groups.values() for c in reversed(group) if c.id in shown],
    )


def _record(name: str, group: Sequence[Checkpoint], shown: set[str]) -> dict[str, object]:
    from ckpt_core.cli.history import attempts_of, links
    from ckpt_core.cli.records import attempt_record, checkpoint_record

    linked = links(group)
    rows = []
    for checkpoint in sorted(group, key=lambda c: c.order, reverse=True):
        link = linked[checkpoint.id]
        after = {"follows": link.to, "direct": link.direct} if link else {"follows": None, "direct": True}
        if checkpoint.id in shown:
            rows.append(checkpoint_record(checkpoint) | after)
    return {"name": name, "attempts": [attempt_record(a) for a in attempts_of(group)], "checkpoints": rows}


def _show(output: Output, groups: dict[str, list[Checkpoint]], shown: set[str], call: Call) -> None:
    from ckpt_core.cli.history import attempts_of
    from ckpt_core.cli.tables import Span
    from ckpt_core.cli.words import counted

    if not groups:
        output.line("the store has no checkpoints yet")
    for i, (name, group) in enumerate(groups.items()):
        attempts = attempts_of(group)
        lineages = len({attempt.lineage for attempt in attempts})
        began = f", {lineages} of them from nothing" if len(attempts) > 1 else ""
        if i:
            output.line()
        output.line(
            Span(name, "bold"),
            f"  {counted(len(group), 'checkpoint')}, {counted(len(attempts), 'attempt')}{began}",
        )
        _graph(output, group, shown, call)


def _graph(output: Output, group: Sequence[Checkpoint], shown: set[str], call: Call) -> None:
    from ckpt_core.cli.escape import escape, width_of
    from ckpt_core.cli.history import draw
    from ckpt_core.cli.records import marks, metrics_text, short_ids
    from ckpt_core.cli.tables import Span, shortened
    from ckpt_core.cli.words import ago

    short = short_ids(c.id for c in group)
    latest = max(group, key=lambda c: c.order)
    best = _best(group, call)
    digits = max(len(str(c.step)) for c in group)
    left = len(shown & {c.id for c in group})
    for row in draw(group):
        if row.checkpoint is not None:
            if not left:
                output.line(Span(f"{row.graph.replace('*', ':')} older ones are left out", "dim"))
                return
            left -= 1
            c = row.checkpoint
            words = marks(c, latest=c.id == latest.id, best=c.id == best)
            names = [call.metric] if call.metric else None
            facts = f"  step {c.step:<{digits}}  {ago(c.created_at)}  "
            ending = escape(f"  ({', '.join(words)})" if words else "")
            metrics = escape(metrics_text(c, names))
            if output.width is not None:
                taken = len(row.graph) + 1 + len(short[c.id]) + len(facts) + width_of(ending)
                metrics = shortened(metrics, max(output.width - taken, 0))
            output.line(f"{row.graph} ", Span(short[c.id], "yellow"), facts, metrics, Span(ending, "green"))
        else:
            text = _origin(row.attempt, short) if row.attempt else ""
            output.line(row.graph or " ", Span(f" {text}" if text else "", "dim"))


def _best(group: Sequence[Checkpoint], call: Call) -> str | None:
    if call.metric is None:
        return None
    from ckpt_core.pipeline.resolve import best_first

    newest = max(group, key=lambda c: c.order)
    lineage = [c for c in group if c.attempt.lineage == newest.attempt.lineage and call.metric in c.metrics]
    return best_first(lineage, call.metric, call.mode)[0].id if lineage else None


def _origin(attempt: Attempt, short: dict[str, str]) -> str:
    if attempt.resumed_from is None:
        return f"attempt {attempt.number} began from nothing"
    where = short.get(attempt.resumed_from, f"{attempt.resumed_from[:10]}, since forgotten")
    return f"attempt {attempt.number} resumed from step {attempt.resumed_step} ({where})"
