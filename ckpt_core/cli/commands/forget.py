"""`ckpt forget`: drops checkpoints, named one by one or by what retention policies leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli import exit_codes
from ckpt_core.cli.call import Call
from ckpt_core.cli.options import (
    command,
    complete_experiments,
    complete_references,
    ranking_options,
    yes_option,
)
from ckpt_core.errors import UsageError

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.maintenance.forecast import Forecast
    from ckpt_core.model import Decision

_COUNT = click.IntRange(1)


@command(
    "forget",
    examples=[
        ("ckpt forget digits@step=100 01KAS3V2", "these two"),
        ("ckpt forget --keep-last 3 --keep-tagged --dry-run", "what would go, and why"),
        ("ckpt forget -e digits --keep-best 2 --metric val_loss --mode min", ""),
        ("ckpt forget --keep-last 1 --keep-every-steps 1000 --prune --yes", "in a nightly job"),
        ("ckpt forget --all-of scratch", "every checkpoint of an experiment"),
    ],
)
@click.argument("references", metavar="[REF]...", nargs=-1, shell_complete=complete_references)
@click.option(
    "-e",
    "--experiment",
    "experiments",
    multiple=True,
    metavar="NAME",
    help="Apply the policies to this experiment only. May be repeated.",
)
@click.option("--keep-last", type=_COUNT, metavar="N", help="Keep the newest N.")
@click.option("--keep-best", type=_COUNT, metavar="N", help="Keep the best N by --metric and --mode.")
@click.option(
    "--keep-every-steps", type=_COUNT, metavar="N", help="Keep those whose step is a multiple of N."
)
@click.option(
    "--keep-every-minutes",
    type=click.FloatRange(0, min_open=True),
    metavar="M",
    help="Keep the first of each stretch of M minutes.",
)
@click.option(
    "--keep-tagged",
    is_flag=False,
    flag_value="*",
    metavar="[PATTERN]",
    help="Keep those with a tag, or with one that matches PATTERN.",
)
@click.option("--keep-hourly", type=_COUNT, metavar="N", help="Keep the newest of each of the last N hours.")
@click.option("--keep-daily", type=_COUNT, metavar="N", help="Keep the newest of each of the last N days.")
@click.option("--keep-weekly", type=_COUNT, metavar="N", help="Keep the newest of each of the last N weeks.")
@click.option(
    "--keep-within", metavar="SIZE", help="Keep as many of the newest as fit, as '50 GB' or '50 GiB'."
)
@click.option(
    "--all-of",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_experiments,
    help="Forget every checkpoint of this experiment.",
)
@click.option(
    "-n", "--dry-run", is_flag=True, help="Show what would be forgotten, why, and what it would free."
)
@click.option("--prune", "prune_too", is_flag=True, help="Reclaim the bytes at once.")
@yes_option
@ranking_options
def forget(
    call: Call,
    references: tuple[str, ...],
    experiments: tuple[str, ...],
    all_of: tuple[str, ...],
    dry_run: bool,
    prune_too: bool,
    **keep: Any,
) -> int:
    """Drop checkpoints: those named, or those that no policy keeps.

    They are no longer listed or loaded. For a day `ckpt undelete` brings them back; then `ckpt prune`
    reclaims their bytes (--prune does so at once), and only then are they gone for good. Policies are
    applied to each lineage of an experiment (a training and all its resumes) by itself. Each keeps what
    it says; pinned checkpoints and the newest of a lineage always stay.
    """
    from ckpt_core.cli.retention import decide_all, decide_named, policies_from
    from ckpt_core.maintenance.forecast import forecast
    from ckpt_core.repository import GRACE_SECONDS

    policies = policies_from(call, keep)
    if bool(references or all_of) == bool(policies):
        raise UsageError(
            "name checkpoints or give policies, not both"
            if policies
            else "name checkpoints, or give policies such as --keep-last 3",
            kind="usage",
        )
    if experiments and not policies:
        raise UsageError("--experiment goes with policies; --all-of forgets a whole experiment", kind="usage")
    decisions = (
        decide_all(call, policies, experiments) if policies else decide_named(call, references, all_of)
    )
    doomed = [decision.checkpoint for decision in decisions if not decision.keep]
    found = forecast(call.workspace.repository, doomed)
    if not (call.json or call.quiet):
        _show_plan(call.output, decisions, found, dry_run)
    if dry_run or not doomed:
        _answer(call, decisions, found, dry_run, [], None)
        return exit_codes.OK
    call.confirm(f"Forget {len(doomed)} checkpoint{'' if len(doomed) == 1 else 's'}?")
    # The oldest first: an interruption leaves the newest.
    ordered = sorted(doomed, key=lambda c: (c.experiment, *c.order))
    grace = 0.0 if prune_too else GRACE_SECONDS
    gone = [checkpoint.id for checkpoint in call.workspace.forget(ordered, grace=grace)]
    pruned = call.workspace.prune(call.workspace.plan_prune()) if prune_too else None
    _answer(call, decisions, found, dry_run, gone, None if pruned is None else pruned.freed)
    lost = {checkpoint.id for checkpoint in doomed}.difference(gone)
    for id_ in sorted(lost):
        call.output.warning(f"{id_} was gone already: another process forgot it")
    return exit_codes.PARTIAL if lost else exit_codes.OK


def _answer(
    call: Call,
    decisions: Sequence[Decision],
    found: Forecast,
    dry_run: bool,
    gone: list[str],
    freed: int | None,
) -> None:
    from ckpt_core.cli.records import checkpoint_record
    from ckpt_core.cli.words import counted, size

    rows = [
        {
            "checkpoint": checkpoint_record(decision.checkpoint),
            "keep": decision.keep,
            "reasons": list(decision.reasons),
            "frees": found.by_checkpoint.get(decision.checkpoint.id, 0),
        }
        for decision in decisions
    ]
    data = {"dry_run": dry_run, "decisions": rows, "frees": found.frees, "forgotten": gone, "freed": freed}

    def show(output: Output) -> None:
        if freed is not None:
            output.line(f"forgot {counted(len(gone), 'checkpoint')}; {size(freed)} reclaimed")
        elif gone:
            reclaims = "" if found.frees is None else f", then `ckpt prune` reclaims {size(found.frees)}"
            back = "it" if len(gone) == 1 else "them"
            output.line(
                f"forgot {counted(len(gone), 'checkpoint')}; for a day `ckpt undelete` brings {back} back{reclaims}"
            )

    call.answer(
        "forget", data, show, quiet=[d.checkpoint.id for d in decisions if not d.keep] if dry_run else gone
    )


def _show_plan(output: Output, decisions: Sequence[Decision], found: Forecast, dry_run: bool) -> None:
    from ckpt_core.cli.records import short_ids
    from ckpt_core.cli.tables import Cell, Column, Span
    from ckpt_core.cli.words import ago, counted, size

    short = short_ids(decision.checkpoint.id for decision in decisions)
    columns = [
        Column(""),
        Column("ID"),
        Column("EXPERIMENT", cut=True, drop=1),
        Column("STEP", right=True),
        Column("SAVED", drop=2),
        Column("WHY", cut=True),
        Column("FREES", right=True),
    ]
    rows: list[list[Cell]] = [
        [
            Span("keep", "green") if decision.keep else Span("forget", "red"),
            Span(short[decision.checkpoint.id], "yellow"),
            decision.checkpoint.experiment,
            str(decision.checkpoint.step),
            ago(decision.checkpoint.created_at),
            ", ".join(decision.reasons),
            "" if decision.keep else size(found.by_checkpoint[decision.checkpoint.id]),
        ]
        for decision in decisions
    ]
    output.table(columns, rows)
    going = sum(1 for decision in decisions if not decision.keep)
    if not going:
        output.line("nothing to forget")
        return
    output.line()
    word = "would forget" if dry_run else "to forget:"
    frees = ", which frees " + size(found.frees) if found.frees is not None else ""
    output.line(f"{word} {going:,} of {counted(len(decisions), 'checkpoint')}{frees}")
    if found.frees is None:
        output.warning("what that frees cannot be told: a manifest is damaged (`ckpt verify` says which)")
