"""`ckpt audit`: who changed what in a store, when, and how it ended; and whether the trail itself is whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ckpt_core.cli import exit_codes
from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command

if TYPE_CHECKING:
    from ckpt_core.catalog.audit import AuditEntry
    from ckpt_core.cli.output import Output

_SHOWN = 50


@command(
    "audit",
    examples=[
        ("ckpt audit", "the newest entries"),
        ("ckpt audit --event forget --event undelete --all", ""),
        ("ckpt audit --verify", "in a nightly job"),
    ],
)
@click.option(
    "-n", "--last", type=click.IntRange(1), default=_SHOWN, metavar="N", help="So many of the newest (50)."
)
@click.option("--all", "all_of_them", is_flag=True, help="Every entry.")
@click.option("--event", "events", multiple=True, metavar="WORD", help="Only of this kind, as `prune`.")
@click.option(
    "--verify", "verify_too", is_flag=True, help="Check that no entry was altered, removed or slipped in."
)
def audit(call: Call, last: int, all_of_them: bool, events: tuple[str, ...], verify_too: bool) -> int:
    """Show who changed what, when, and how it ended.

    Each entry holds the hash of the one before it, so --verify finds one that was altered, removed,
    moved or slipped in, and exits with 4. The trail is the catalog's: it is lost with it.
    """
    catalog = call.workspace.index.catalog()
    shown = catalog.audit_log(None if all_of_them else last, events)
    more = max(catalog.audit_count(events) - len(shown), 0)
    broken = catalog.verify_audit() if verify_too else None
    data = {
        "entries": [_record(entry) for entry in shown],
        "more": more,
        "verified": verify_too and broken is None,
        "broken_from": broken,
    }
    call.answer("audit", data, lambda output: _show(output, shown, more),
                quiet=[entry.hash for entry in shown])  # fmt: skip
    if broken is not None:
        call.output.warning(
            f"the trail is not as it was written, from entry {broken} on: find out who changed the database"
        )
        return exit_codes.CORRUPT
    if verify_too and not call.json:
        call.output.note("every entry is as it was written")
    return exit_codes.OK


def _record(entry: AuditEntry) -> dict[str, object]:
    from ckpt_core.cli.words import iso

    return {
        "id": entry.id,
        "at": iso(entry.at),
        "actor": entry.actor,
        "event": entry.event,
        "subject": entry.subject,
        "outcome": entry.outcome,
        "detail": dict(entry.detail),
        "hash": entry.hash,
    }


def _show(output: Output, shown: Sequence[AuditEntry], more: int) -> None:
    from ckpt_core.cli.tables import Cell, Column, Span
    from ckpt_core.cli.words import iso

    if not shown:
        output.line("nothing is in the audit trail")
        return
    rows: list[list[Cell]] = [
        [
            str(entry.id),
            iso(entry.at),
            entry.actor,
            entry.event,
            entry.subject,
            entry.outcome if entry.outcome == "done" else Span(entry.outcome, "red"),
            ", ".join(f"{name}={value}" for name, value in entry.detail.items()),
        ]
        for entry in reversed(shown)
    ]
    columns = [
        Column("ENTRY", right=True),
        Column("WHEN"),
        Column("WHO", cut=True),
        Column("WHAT"),
        Column("OF", cut=True),
        Column("HOW"),
        Column("DETAIL", cut=True, drop=1),
    ]
    output.table(columns, rows)
    if more:
        output.note(f"{more:,} older entries are not shown: --all")
