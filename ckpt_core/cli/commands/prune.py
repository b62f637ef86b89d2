"""`ckpt prune`: reclaims the bytes that no checkpoint names any more."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, yes_option

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.maintenance.prune import PrunePlan


@command(
    "prune",
    examples=[
        ("ckpt prune --dry-run", "what would be deleted"),
        ("ckpt prune --yes", "without asking"),
    ],
)
@click.option("-n", "--dry-run", is_flag=True, help="Print the plan and change nothing.")
@click.option("--now", is_flag=True, help="Also what `ckpt undelete` could bring back for a while yet.")
@yes_option
def prune(call: Call, dry_run: bool, now: bool) -> None:
    """Reclaim the bytes that no checkpoint needs.

    They are those of forgotten checkpoints, of interrupted saves and of half-dead packs. What goes
    cannot be brought back; what was forgotten less than a day ago stays, unless it is to go --now. What
    a save that is running may be about to name is left alone, too. Interrupted at any moment, a prune
    loses nothing that a checkpoint needs. Exits with 11 where another prune is at work.
    """
    from ckpt_core.cli.words import size

    workspace = call.workspace
    plan = workspace.plan_prune(now=now)
    if not (call.json or call.quiet):
        _show_plan(call.output, plan, dry_run)
    pruned = None
    if not dry_run:
        if plan.frees or plan.manifests:
            call.confirm(f"Reclaim {size(plan.frees)}? What goes cannot be brought back.")
        pruned = workspace.prune(plan)  # also of an empty plan: stale temporaries go

    def show(output: Output) -> None:
        if pruned is not None and (pruned.freed or not plan.empty):
            left = f", {size(pruned.temporaries)} of them left by interrupted writes"
            output.line(f"reclaimed {size(pruned.freed)}{left if pruned.temporaries else ''}")

    data = {"dry_run": dry_run, "plan": _record(plan), "done": None if pruned is None else asdict(pruned)}
    call.answer("prune", data, show, quiet=[str(plan.frees)] if dry_run else [])


def _record(plan: PrunePlan) -> dict[str, Any]:
    return {
        "manifests": list(plan.manifests),
        "packs": [{"name": name, "bytes": size} for name, size in plan.packs],
        "rewrites": [
            {"name": name, "live_bytes": live, "dead_bytes": dead} for name, live, dead in plan.rewrites
        ],
        "forwards": list(plan.forwards),
        "references": list(plan.references),
        "signatures": list(plan.signatures),
        "young": list(plan.young),
        "claimed": list(plan.claimed),
        "granted": [{"manifest": key, "seconds_left": left} for key, left in plan.granted],
        "restores": list(plan.restores),
        "withdrawn": [{"name": name, "bytes": size} for name, size in plan.withdrawn],
        "frees": plan.frees,
    }


def _show_plan(output: Output, plan: PrunePlan, dry_run: bool) -> None:
    from ckpt_core.cli.tables import Cell, Column, Span
    from ckpt_core.cli.words import counted, size

    rows: list[list[Cell]] = [
        [Span("delete", "red"), name, size(count), "no checkpoint names it"] for name, count in plan.packs
    ]
    rows += [
        [Span("rewrite", "yellow"), name, size(dead), f"{size(live)} of it still needed"]
        for name, live, dead in plan.rewrites
    ]
    rows += [
        [Span("delete", "red"), name, size(count), "an interrupted prune took it out"]
        for name, count in plan.withdrawn
    ]
    rows += [[Span("put back", "green"), name, "", "a checkpoint names it"] for name in plan.restores]
    output.table(
        [Column(""), Column("PACK", cut=True), Column("FREES", right=True), Column("WHY", cut=True)], rows
    )
    if rows:
        output.line()
    others = [
        (len(plan.manifests), "forgotten checkpoint", None),
        (len(plan.forwards), "stale forwarding", None),
        (len(plan.references), "dangling tag or pin", "dangling tags and pins"),
        (len(plan.signatures), "signature of nothing", "signatures of nothing"),
    ]
    also = [counted(count, word, plural) for count, word, plural in others if count]
    if plan.young:
        output.note(
            f"left alone: {counted(len(plan.young), 'pack')} that nothing names yet, under an hour old"
        )
    if plan.granted:
        output.note(
            f"left alone: {counted(len(plan.granted), 'forgotten checkpoint')} that `ckpt undelete` can still bring "
            "back; --now takes them, too"
        )
    if plan.claimed:
        output.note(
            f"left alone: {counted(len(plan.claimed), 'pack')} that a running save may be about to name"
        )
    if plan.empty:
        output.line("nothing to prune")
        return
    word = "would go for good" if dry_run else "will go for good"
    if also:
        output.line(f"{', '.join(also)} {word}")
    output.line(f"{size(plan.frees)} {'would be' if dry_run else 'will be'} reclaimed")
