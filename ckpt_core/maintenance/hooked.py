"""What the audit trail tells of hooks: those that were left out, as they had failed again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ckpt_core import clock
from ckpt_core.maintenance.findings import Finding

if TYPE_CHECKING:
    from ckpt_core.catalog import Catalog
    from ckpt_core.catalog.audit import AuditEntry

__all__ = ["left_out"]


_NEWEST = 1000
"""Entries of a kind that are looked at: what no run has told of since is no news."""


def left_out(open_catalog: Callable[[], Catalog]) -> Iterator[Finding]:
    """Hooks that were left out and have not worked again since, nor been none of those of a run that has ended."""
    out: dict[tuple[str, str], AuditEntry] = {}
    for entry in reversed(open_catalog().audit_log(_NEWEST, ["hook", "hooks"])):
        if entry.event == "hooks" and entry.outcome == "ended":
            rows = entry.detail.get("hooks", ())
            open_still = {row.get("name") for row in rows if row.get("circuit") != "closed"}
            out = {
                key: value for key, value in out.items() if key[0] != entry.subject or key[1] in open_still
            }
        elif entry.event == "hook":
            key = (str(entry.detail.get("experiment")), entry.subject)
            if entry.outcome == "left-out":
                out[key] = entry
            else:
                out.pop(key, None)
    for (experiment, name), entry in out.items():
        yield Finding(
            "warning",
            "hooks",
            f"hook {name} of {experiment} failed again and again, and was left out at {clock.to_text(entry.at)}: "
            f"{entry.detail.get('reason')}",
            "mend its cause; it is tried again from time to time, and by the next run",
        )
