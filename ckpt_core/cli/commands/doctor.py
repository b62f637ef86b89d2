"""`ckpt doctor`: what is wrong or unusual with a store, each with its next step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckpt_core.cli import exit_codes
from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.maintenance.findings import Finding

_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}


@command("doctor", examples=[("ckpt doctor", ""), ("ckpt doctor -q", "only warnings and errors")])
def doctor(call: Call) -> int:
    """Examine the store and say what to do.

    Permissions, space, leftovers, missing packs, tags, the catalog, versions. Exits with 1 where there
    is a warning or an error. Changes nothing. Data is not read: `ckpt verify` does that.
    """
    from ckpt_core.maintenance.doctor import examine

    workspace = call.workspace
    mirror = None if workspace.mirror is None else workspace.mirror.status
    found = examine(workspace.repository, workspace.references, workspace.index.catalog, mirror)
    bad = [finding for finding in found if finding.level in ("warning", "error")]
    data = {
        "ok": not bad,
        "findings": [
            {"level": f.level, "check": f.check, "message": f.message, "advice": f.advice or None}
            for f in found
        ],
    }
    call.answer(
        "doctor",
        data,
        lambda output: _show(output, found),
        quiet=[f"{finding.level}: {finding.check}: {finding.message}" for finding in bad],
    )
    return exit_codes.FAILED if bad else exit_codes.OK


def _show(output: Output, found: list[Finding]) -> None:
    from ckpt_core.cli.tables import Span
    from ckpt_core.cli.words import counted

    for finding in found:
        output.line(
            Span(f"{finding.level:<8}", _STYLES[finding.level]),
            Span(f"{finding.check:<12} ", "bold"),
            finding.message,
        )
        if finding.advice:
            output.line(f"{'':<21}next: {finding.advice}")
    counts = {level: sum(1 for f in found if f.level == level) for level in ("error", "warning", "note")}
    words = [counted(count, level) for level, count in counts.items() if count]
    output.line()
    output.line(", ".join(words) if words else "all is well")
