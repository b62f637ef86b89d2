"""`ckpt experiments`: what there is in a store, an experiment a line; one in full; several side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, complete_experiments
from ckpt_core.errors import UsageError

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.model import ExperimentSummary
    from ckpt_core.tracker.comparison import Comparison, Row
    from ckpt_core.tracker.experiments import ExperimentTracker
    from ckpt_core.tracker.views import Experiment

_STYLES = {"running": "cyan", "finished": "green", "failed": "red", "preempted": "yellow", "lost": "red"}
_ACTIONS = ("list", "show", "compare", "tag", "untag")


@command(
    "experiments",
    examples=[
        ("ckpt experiments", ""),
        ("ckpt experiments --config 'optimizer.lr>=0.01' --status failed", "those that are so"),
        ("ckpt experiments show digits", "configuration, environment, attempts"),
        ("ckpt experiments compare digits digits-2", "what differs"),
        ("ckpt experiments tag digits baseline", "a tag on an experiment, not on a checkpoint"),
        ("ckpt experiments -q", "the names alone"),
    ],
)
@click.argument("action", type=click.Choice(_ACTIONS), default="list")
@click.argument("names", metavar="[EXPERIMENT|TAG]...", nargs=-1, shell_complete=complete_experiments)
@click.option(
    "--tag", "tags", multiple=True, metavar="TAG", help="list: only those with this tag. May be repeated."
)
@click.option(
    "--status",
    type=click.Choice(["running", "finished", "failed", "preempted", "lost", "unknown"]),
    help="list: only those whose newest attempt is so.",
)
@click.option(
    "--config",
    multiple=True,
    metavar="PATH=VALUE",
    help="list: only those configured so; also with !=, <, <=, >, >=. May be repeated.",
)
@click.option("--all", "everything", is_flag=True, help="compare: also what is the same.")
def experiments(
    call: Call,
    action: str,
    names: tuple[str, ...],
    tags: tuple[str, ...],
    status: str | None,
    config: tuple[str, ...],
    everything: bool,
) -> None:
    """List experiments, or look at some of them.

    HOLDS is what its checkpoints hold together, WRITTEN what had to be written for them. STATUS is that of
    the newest attempt: lost is one whose process is gone without a word, or has not been heard of for half
    an hour; unknown one by an earlier version, which did not write it down.
    """
    if action != "list" and (tags or status or config):
        raise UsageError("--tag, --status and --config go with `ckpt experiments` alone", kind="option")
    from ckpt_core.tracker.experiments import ExperimentTracker

    tracker = ExperimentTracker(call.workspace)
    if action == "list":
        if names:
            raise UsageError(f"to look at {names[0]}: ckpt experiments show {names[0]}", kind="option")
        _list(call, tracker, tags, status, config)
    elif action == "show":
        _show(call, [tracker.experiment(name) for name in _at_least(names, 1, "show EXPERIMENT...")])
    elif action == "compare":
        _compare(call, tracker.compare(*_at_least(names, 2, "compare A B")), everything)
    else:
        experiment, *words = _at_least(names, 2, f"{action} EXPERIMENT TAG...")
        for word in words:
            (tracker.tag if action == "tag" else tracker.untag)(experiment, word)
        found = tracker.experiment(experiment)
        data = {"experiment": experiment, "tags": list(found.tags)}
        call.answer("experiments", data, lambda output: output.line(f"{experiment}: {', '.join(found.tags)}"))


def _at_least(names: tuple[str, ...], count: int, usage: str) -> tuple[str, ...]:
    if len(names) < count:
        raise UsageError(f"name what is meant: ckpt experiments {usage}", kind="option")
    return names


# -- list ---------------------------------------------------------------------------------------------


def _list(
    call: Call, tracker: ExperimentTracker, tags: tuple[str, ...], status: str | None, config: tuple[str, ...]
) -> None:
    found = tracker.experiments(tags=tags, status=status, config=config)
    holds = {summary.name: summary for summary in call.workspace.facts.summaries()}
    call.answer(
        "experiments",
        lambda: {"experiments": [_summary(each, holds.get(each.name)) for each in found]},
        lambda output: _show_list(
            output, [(each, holds.get(each.name)) for each in found], bool(tags or status or config)
        ),
        quiet=[each.name for each in found],
    )


def _summary(each: Experiment, summary: ExperimentSummary | None) -> dict[str, Any]:
    return {
        "name": each.name,
        "status": each.status,
        "tags": list(each.tags),
        "checkpoints": summary.checkpoints if summary else 0,
        "attempts": len(each.attempts),
        "first_at": _moment(summary.first_at if summary else None),
        "last_at": _moment(summary.last_at if summary else None),
        "last_step": summary.last_step if summary else None,
        "logical_bytes": summary.logical_bytes if summary else 0,
        "written_bytes": summary.written_bytes if summary else 0,
        "config": dict(each.config),
    }


def _moment(moment: Any) -> str | None:
    from ckpt_core import clock

    return None if moment is None else clock.to_text(moment)


def _show_list(
    output: Output, found: list[tuple[Experiment, ExperimentSummary | None]], filtered: bool
) -> None:
    from ckpt_core.cli.tables import Cell, Column, Span
    from ckpt_core.cli.words import ago, iso, size

    if not found:
        output.line(f"the store has no {'such experiments' if filtered else 'experiments yet'}")
    columns = [
        Column("EXPERIMENT", cut=True),
        Column("STATUS"),
        Column("CHECKPOINTS", right=True, drop=1),
        Column("ATTEMPTS", right=True, drop=3),
        Column("LAST STEP", right=True),
        Column("LAST SAVED"),
        Column("AT", drop=5),
        Column("HOLDS", right=True),
        Column("WRITTEN", right=True, drop=2),
        Column("TAGS", cut=True, drop=4),
    ]
    rows: list[list[Cell]] = [
        [
            Span(each.name, "bold"),
            Span(each.status, _STYLES.get(each.status, "dim")),
            str(summary.checkpoints if summary else 0),
            str(len(each.attempts)),
            "" if summary is None or summary.last_step is None else str(summary.last_step),
            ago(summary.last_at) if summary and summary.last_at else "",
            Span(iso(summary.last_at), "dim") if summary and summary.last_at else "",
            size(summary.logical_bytes if summary else 0),
            size(summary.written_bytes if summary else 0),
            ", ".join(each.tags),
        ]
        for each, summary in found
    ]
    output.table(columns, rows)


# -- show ---------------------------------------------------------------------------------------------


def _show(call: Call, found: list[Experiment]) -> None:
    def show(output: Output) -> None:
        for each in found:
            _show_one(output, each)

    call.answer(
        "experiments",
        lambda: {"experiments": [_record(each) for each in found]},
        show,
        quiet=[each.status for each in found],
    )


def _record(each: Experiment) -> dict[str, Any]:
    return {
        "name": each.name,
        "status": each.status,
        "reason": each.reason,
        "tags": list(each.tags),
        "started_at": _moment(each.started_at),
        "ended_at": _moment(each.ended_at),
        "parent": _parent(each),
        "config": dict(each.config),
        "environment": dict(each.environment),
        "attempts": [
            {
                "number": attempt.number,
                "id": attempt.id,
                "lineage": attempt.lineage,
                "status": attempt.status,
                "reason": attempt.reason,
                "started_at": _moment(attempt.started_at),
                "ended_at": _moment(attempt.ended_at),
                "parent": _parent(attempt),
                "config": None if attempt.config is None else dict(attempt.config),
            }
            for attempt in each.attempts
        ],
    }


def _parent(each: Any) -> dict[str, Any] | None:
    parent = each.parent
    if parent is None:
        return None
    return {
        "relation": parent.relation,
        "experiment": parent.experiment,
        "checkpoint": parent.checkpoint,
        "step": parent.step,
    }


def _show_one(output: Output, each: Experiment) -> None:
    from ckpt_core.cli.tables import Cell, Column, Span
    from ckpt_core.cli.words import when
    from ckpt_core.tracker.comparison import environment_of
    from ckpt_core.tracker.views import configuration_of

    def row(name: str, *parts: Cell) -> None:
        output.line(Span(f"{name:<12}", "bold"), *parts)

    output.line(Span(each.name, "bold"))
    row("status", Span(each.status, _STYLES.get(each.status, "dim")), f"  {each.reason}")
    if each.tags:
        row("tags", ", ".join(each.tags))
    if each.started_at:
        row("started", when(each.started_at))
    if each.ended_at:
        row("ended", when(each.ended_at))
    if each.parent:
        row(
            "began from",
            f"{each.parent.experiment or '?'} step {each.parent.step} ({each.parent.checkpoint})",
        )
    for title, facts in (("config", configuration_of(each)), ("environment", environment_of(each))):
        shown = [(name, value) for name, value in facts.items() if not name.startswith("packages.")]
        for place, (name, value) in enumerate(shown):
            row(title if place == 0 else "", f"{name} = {_text(value)}")
    output.line()
    columns = [
        Column("ATTEMPT", right=True),
        Column("STATUS"),
        Column("STARTED"),
        Column("FROM"),
        Column("", cut=True),
    ]
    rows: list[list[Cell]] = [
        [
            str(attempt.number),
            Span(attempt.status, _STYLES.get(attempt.status, "dim")),
            when(attempt.started_at) if attempt.started_at else "",
            "" if attempt.parent is None else f"step {attempt.parent.step}",
            attempt.reason,
        ]
        for attempt in each.attempts
    ]
    output.table(columns, rows)


# -- compare ------------------------------------------------------------------------------------------


def _compare(call: Call, found: Comparison, everything: bool) -> None:
    rows = found.rows if everything else found.differing
    names = [each.name for each in found.experiments]
    data = {
        "experiments": names,
        "rows": [
            {"group": row.group, "name": row.name, "same": row.same, "values": list(row.values)}
            for row in found.rows
        ],
    }
    call.answer(
        "experiments",
        data,
        lambda output: _show_comparison(output, names, rows, len(found.rows) - len(rows)),
        quiet=[row.name for row in rows],
    )


def _show_comparison(output: Output, names: list[str], rows: tuple[Row, ...], same: int) -> None:
    from ckpt_core.cli.tables import Column

    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    for place, (group, own) in enumerate(groups.items()):
        if place:
            output.line()
        columns = [Column(group.upper(), cut=True), *(Column(name, cut=True) for name in names)]
        output.table(columns, [[row.name, *map(_text, row.values)] for row in own])
    if same:
        output.line()
        output.line(f"{same} facts are the same (--all shows them)")


def _text(value: Any) -> str:
    from ckpt_core.cli.words import number

    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else number(value)
