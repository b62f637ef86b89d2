"""`ckpt repair`: heals what is damaged or lost, and puts aside what cannot be healed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckpt_core.cli import exit_codes
from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, yes_option
from ckpt_core.errors import UsageError

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.maintenance.repair import RepairReport
    from ckpt_core.pipeline.workspace import Workspace

_WORDS = {
    "store": "another pack of the store",
    "mirror": "the mirror",
    "parity": "parity",
    "bit": "its digest: one bit had flipped",
    "manifest": "what other objects say",
}


@command(
    "repair",
    examples=[
        ("ckpt repair --dry-run", "what would be healed, and from where"),
        ("ckpt repair", "heal it"),
        ("ckpt repair --mirror /backup/checkpoints", "from this store, too"),
    ],
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done and change nothing.")
@click.option(
    "--mirror",
    metavar="PATH|URL",
    help="Heal from this copy of the store. Left out: the mirror that it remembers.",
)
@click.option("--discard", is_flag=True, help="Give up what is in quarantine instead.")
@yes_option
def repair(call: Call, dry_run: bool, mirror: str | None, discard: bool) -> int:
    """Heal what is damaged or lost, as far as anything holds it.

    Every byte is read. What is damaged is taken from another pack of the store, from the mirror, or computed
    from parity, and proved by its digest before it takes its place. What cannot be healed goes to quarantine,
    with the checkpoints that need it; the next repair tries again. Exits with 4 where anything stays lost.
    Interrupted at any moment, it has made nothing worse.
    """
    from ckpt_core.cli.progress import progress_bar
    from ckpt_core.pipeline.workspace import Workspace

    if discard:
        if dry_run or mirror:
            raise UsageError("--discard goes with neither --dry-run nor --mirror", kind="option")
        return _discard(call)
    mended = None if dry_run else Workspace.mend_store(call.store_location, mirror)
    workspace = call.workspace
    before = {c.id: f"{c.experiment} step {c.step} ({c.id})" for c in workspace.index.checkpoints()}
    with progress_bar(call.output, "reading") as progress:
        report = workspace.repair(dry_run=dry_run, mirror=mirror, progress=progress)
    healed: list[tuple[str, tuple[str, ...]]] = [] if mended is None else [("store.json", (mended,))]
    healed += [(each.key, each.sources) for each in report.mended]
    names = before | {c.id: f"{c.experiment} step {c.step} ({c.id})" for c in workspace.index.checkpoints()}
    names |= _in_quarantine(workspace)
    data = {
        "ok": report.ok,
        "dry_run": dry_run,
        "healed": [{"key": key, "from": list(sources)} for key, sources in healed],
        "quarantined": list(report.quarantined),
        "lost": list(report.lost),
        "returned": list(report.returned),
        "bytes_read": report.found.bytes_read,
    }
    call.answer("repair", data, lambda output: _show(output, report, healed, names), quiet=report.lost)
    return exit_codes.OK if report.ok else exit_codes.CORRUPT


def _in_quarantine(workspace: Workspace) -> dict[str, str]:
    found = workspace.repository.manifest_keys(quarantine=True)
    return {key.id: f"{key.folder} step {key.step} ({key.id})" for key in found}


def _discard(call: Call) -> int:
    workspace = call.workspace
    waiting = _in_quarantine(workspace)
    call.confirm(f"Give up {len(waiting)} checkpoints in quarantine? They cannot be healed any more then.")
    count = workspace.discard_quarantine()
    data = {"objects": count, "checkpoints": sorted(waiting)}

    def show(output: Output) -> None:
        from ckpt_core.cli.words import counted

        said = f"{counted(count, 'object')} in quarantine given up, {counted(len(waiting), 'checkpoint')} of them"
        output.line(said if count else "nothing is in quarantine")

    call.answer("repair", data, show, quiet=sorted(waiting))
    return exit_codes.OK


def _show(
    output: Output, report: RepairReport, healed: list[tuple[str, tuple[str, ...]]], names: dict[str, str]
) -> None:
    from ckpt_core.cli.tables import Span
    from ckpt_core.cli.words import counted, size

    would = "would be healed" if report.dry_run else "healed"
    for key, sources in healed:
        output.line(Span(would, "green"), f"  {key}")
        output.line(f"    from {', '.join(_WORDS[source] for source in sources) or 'what was left of it'}")
    for key in report.quarantined:
        output.line(Span("cannot be healed", "red"), f"  {key}")
    if healed or report.quarantined:
        output.line()
    for word, ids in (("whole again", report.returned), ("lost", report.lost)):
        for each_id in ids:
            output.line(f"{word}: {names.get(each_id, each_id)}")
    looked = f"{size(report.found.bytes_read)} read and checked"
    if not healed and report.ok:
        output.line(f"{looked}: ", Span("nothing to repair", "green"))
        return
    output.line(
        f"{looked}: {counted(len(healed), 'object')} {would}, {counted(len(report.lost), 'checkpoint')} lost"
    )
    if report.lost:
        output.line(
            "`ckpt repair --mirror PATH` heals from a copy of the store; --discard gives up what is lost."
        )
