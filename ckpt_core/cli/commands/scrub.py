"""`ckpt scrub`: a full verification in portions, at a bounded pace, oldest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckpt_core.cli import exit_codes
from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.maintenance.scrubbing import ScrubReport


@command(
    "scrub",
    examples=[
        ("ckpt scrub", "everything, what was not checked for longest first"),
        ("ckpt scrub --rate 50MB --minutes 30", "every night, beside a training"),
    ],
)
@click.option("--rate", metavar="SIZE", help="Read at most so much a second, as 50MB.")
@click.option("--limit", metavar="SIZE", help="Stop when so much was read, as 100GB.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after so many minutes.")
def scrub(call: Call, rate: str | None, limit: str | None, minutes: float | None) -> int:
    """Check what was not checked for longest, a pack at a time.

    The catalog remembers what was read when, so that a scrub that was stopped is gone on with by the next.
    Exits with 4 where anything is damaged; nothing is changed.
    """
    from ckpt_core.cli.progress import progress_bar
    from ckpt_core.policies import parse_bytes

    pace = None if rate is None else max(parse_bytes(rate), 1)
    most = None if limit is None else parse_bytes(limit)
    with progress_bar(call.output, "scrubbing") as progress:
        report = call.workspace.scrub(
            rate=pace, limit=most, seconds=None if minutes is None else 60 * minutes, progress=progress
        )
    data = {
        "ok": report.ok,
        "packs": report.packs,
        "bytes_read": report.bytes_read,
        "left": report.left,
        "problems": [
            {"kind": p.kind, "key": p.key, "detail": p.detail, "checkpoints": list(p.checkpoints)}
            for p in report.problems
        ],
        "damaged": list(report.damaged),
    }
    call.answer("scrub", data, lambda output: _show(output, report), quiet=report.damaged)
    return exit_codes.OK if report.ok else exit_codes.CORRUPT


def _show(output: Output, report: ScrubReport) -> None:
    from ckpt_core.cli.tables import Span
    from ckpt_core.cli.words import counted, size

    for problem in report.problems:
        output.line(Span(f"damaged ({problem.kind})", "red"), f"  {problem.key}")
        output.line(f"    {problem.detail}")
    left = f", {counted(report.left, 'pack')} left for the next" if report.left else ""
    read = f"{counted(report.packs, 'pack')}, {size(report.bytes_read)} read and checked{left}: "
    if report.ok:
        output.line(read, Span("no damage", "green"))
    else:
        output.line(read, Span(counted(len(report.problems), "damage", "damages"), "red"))
        output.line("`ckpt repair` heals what can be healed.")
