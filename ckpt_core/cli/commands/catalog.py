"""`ckpt catalog`: copies of the catalog: lists them, makes one, puts one back."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, yes_option
from ckpt_core.errors import UsageError

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output


@command(
    "catalog",
    examples=[
        ("ckpt catalog backup", "a copy, now"),
        ("ckpt catalog list", ""),
        ("ckpt catalog restore", "the newest copy"),
    ],
)
@click.argument("action", type=click.Choice(["list", "backup", "restore"]))
@click.argument("backup", required=False)
@yes_option
def catalog(call: Call, action: str, backup: str | None) -> None:
    """Keep copies of the catalog, and put one back.

    Checkpoints do not need it: `ckpt reindex` makes the catalog anew from the store. A copy has what the
    store does not know, the audit trail and the record of checks. One is made before every upgrade,
    reindex, repair and prune; the newest five are kept.
    """
    from ckpt_core.catalog import backups

    if backup is not None and action != "restore":
        raise UsageError(f"`ckpt catalog {action}` takes no name of a backup", kind="usage")
    workspace = call.workspace
    path = backups.file_of(workspace.index.url)
    if action == "backup":
        made = backups.back_up(path, "manual")
        call.answer("catalog", _record(made), lambda output: output.line(f"made {made}"), quiet=[str(made)])
    elif action == "restore":
        call.confirm(f"Put a backup in the place of {path}? What is there now is backed up first.")
        workspace.index.release()
        used = backups.restore(path, backup)
        workspace.audit("restore-catalog", used.name, "done")
        workspace.index.synchronise()

        def show(output: Output) -> None:
            output.line(f"{path} is as it was in {used.name}, and in line with the store")

        call.answer("catalog", _record(used), show, quiet=[str(used)])
    else:
        _list(call, backups.backups_of(path))


def _record(path: Path) -> dict[str, object]:
    from ckpt_core.cli.words import iso

    status = path.stat()
    made = datetime.fromtimestamp(status.st_mtime, UTC)
    return {"name": path.name, "path": str(path), "bytes": status.st_size, "made_at": iso(made)}


def _list(call: Call, found: list[Path]) -> None:
    records = [_record(path) for path in found]

    def show(output: Output) -> None:
        from ckpt_core.cli.tables import Cell, Column
        from ckpt_core.cli.words import ago, size

        if not found:
            output.line("there is no backup; `ckpt catalog backup` makes one")
            return
        rows: list[list[Cell]] = [
            [path.name, ago(datetime.fromtimestamp(path.stat().st_mtime, UTC)), size(path.stat().st_size)]
            for path in found
        ]
        output.table([Column("BACKUP"), Column("MADE"), Column("SIZE", right=True)], rows)

    call.answer("catalog", {"backups": records}, show, quiet=[path.name for path in found])
