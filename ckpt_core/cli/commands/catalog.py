"""`ckpt catalog`: copies of the catalog: lists them, makes one, puts one back; brings its tables up to date; moves
it to another database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, yes_option
from ckpt_core.errors import UsageError

if TYPE_CHECKING:
    from ckpt_core.catalog.engine import Database
    from ckpt_core.cli.output import Output

_TAKES = {
    "list": (0, 0, "nothing more"),
    "backup": (0, 0, "no name of a backup"),
    "restore": (0, 1, "at most the name of a backup"),
    "migrate": (0, 1, "at most a revision"),
    "copy": (2, 2, "two URLs: from where, to where"),
}


@command(
    "catalog",
    examples=[
        ("ckpt catalog backup", "a copy, now"),
        ("ckpt catalog list", ""),
        ("ckpt catalog restore", "the newest copy"),
        ("ckpt catalog migrate", "what otherwise the next command does"),
        ("ckpt catalog copy sqlite:///checkpoints/catalog.db postgresql+psycopg://host/ckpt", "for a team"),
    ],
)
@click.argument("action", type=click.Choice(list(_TAKES)))
@click.argument("names", nargs=-1, metavar="[BACKUP | REVISION | FROM TO]")
@yes_option
def catalog(call: Call, action: str, names: tuple[str, ...]) -> None:
    """Keep copies of the catalog, put one back, or move it.

    Checkpoints do not need it: `ckpt reindex` makes the catalog anew from the store. A copy has what the
    store does not know, the audit trail and the record of checks. Of an SQLite file one is made before every
    upgrade, reindex, repair and prune. The newest five are kept, beside the file or, of a catalog on a
    server, in the store.
    """
    least, most, what = _TAKES[action]
    if not least <= len(names) <= most:
        raise UsageError(f"`ckpt catalog {action}` takes {what}", kind="usage")
    name = names[0] if names else None
    if action == "copy":
        _copy(call, *names)
    elif action == "migrate":
        _migrate(call, name)
    elif action == "backup":
        _back_up(call)
    elif action == "restore":
        _restore(call, name)
    else:
        from ckpt_core.catalog import backups

        _list(call, backups.backups_of(_place(call)))


def _place(call: Call) -> Path:
    """The file that is backed up, or would be if the catalog were not on a server."""
    from ckpt_core.catalog import backups
    from ckpt_core.stores import LocalStore

    workspace = call.workspace
    path = backups.file_of(workspace.index.url)
    if path is not None:
        return path
    store = workspace.repository.store
    if not isinstance(store, LocalStore):
        raise UsageError(
            "neither the catalog nor the store is on this machine: `ckpt catalog copy URL sqlite:////folder/copy.db` "
            "makes a copy, and the other way round puts it back",
            kind="catalog",
        )
    return store.root / "catalog.db"


def _back_up(call: Call) -> None:
    from ckpt_core.catalog import backups, copying

    workspace, path = call.workspace, _place(call)
    if backups.file_of(workspace.index.url) is not None:
        made = backups.back_up(path, "manual")
    else:
        with copying.opened(workspace.index.url) as database:
            made = copying.back_up(database, workspace.repository.document.store_id, path, "manual")
    call.answer("catalog", _record(made), lambda output: output.line(f"made {made}"), quiet=[str(made)])


def _restore(call: Call, name: str | None) -> None:
    from ckpt_core.catalog import backups, copying
    from ckpt_core.catalog.engine import parse, shown

    workspace, path = call.workspace, _place(call)
    url = workspace.index.url
    on_server = backups.file_of(url) is None
    place = f"what {shown(parse(url))} has of this store" if on_server else str(path)
    call.confirm(f"Put a backup in the place of {place}? What is there now is backed up first.")
    if on_server:
        with copying.opened(url) as database:
            used = copying.restore(database, workspace.repository.document.store_id, path, name)
    else:
        workspace.index.release()
        used = backups.restore(path, name)
    workspace.audit("restore-catalog", used.name, "done")
    workspace.index.synchronise()

    def show(output: Output) -> None:
        output.line(f"{place} is as it was in {used.name}, and in line with the store")

    call.answer("catalog", _record(used), show, quiet=[str(used)])


def _migrate(call: Call, wanted: str | None) -> None:
    """The tables of the catalog, brought up to date, or back to what an earlier version knows."""
    from contextlib import closing

    from ckpt_core.catalog import migrate
    from ckpt_core.catalog.engine import Database

    with closing(Database.open(call.workspace.index.url)) as database:
        before = migrate.revision(database)
        if wanted is None:
            backup = migrate.bring_up_to_date(database)
        else:
            call.confirm(f"Bring {database}, now {before}, back to revision {wanted}?")
            backup = migrate.take_back(database, wanted)
        after = migrate.revision(database)
        place = str(database)

    def show(output: Output) -> None:
        if before == after:
            output.line(f"{place} is of revision {after}: nothing to do")
            return
        output.line(f"{place} is of revision {after} now" + (f", was {before}" if before else ""))
        if backup is not None:
            output.line(f"backup: {backup}")
        if wanted is not None:
            output.line(
                "the next command of this version brings it up to date again: install the earlier one"
            )

    data = {"catalog": place, "from": before, "to": after, "backup": None if backup is None else str(backup)}
    call.answer("catalog", data, show, quiet=[str(after)])


def _copy(call: Call, source_url: str, target_url: str) -> None:
    """Everything of every store that the source has, in the place of what the target has of these stores."""
    from ckpt_core.catalog import copying
    from ckpt_core.cli.words import counted

    with copying.opened(source_url) as source, copying.opened(target_url) as target:
        there = copying.replaced(source, target)
        if there:
            call.confirm(f"{target} has rows of {', '.join(there)}: replace them by those of {source}?")
        rows = copying.copy(source, target)
        _note(source, target, rows)
        origin, place = str(source), str(target)

    def show(output: Output) -> None:
        output.line(
            f"{place} has what {origin} had: {counted(rows.get('checkpoints', 0), 'checkpoint')}, "
            f"{counted(rows.get('experiment_metrics', 0), 'point')} of metrics, "
            f"{counted(rows.get('audit_log', 0), 'entry', 'entries')} of the audit trail"
        )
        output.line("use it from now on: catalog= in Python, --catalog or CKPT_CATALOG on the command line")

    call.answer("catalog", {"from": origin, "to": place, "rows": rows}, show, quiet=[place])


def _note(source: Database, target: Database, rows: dict[str, int]) -> None:
    from ckpt_core.catalog import Catalog
    from ckpt_core.catalog.stores import known

    with source.reading() as connection:
        copied = [uid for uid in known(connection) if uid]
    for uid in copied:
        Catalog(target, uid).audit("copy-catalog", str(source), "done", {"rows": rows})


def _record(path: Path) -> dict[str, object]:
    from ckpt_core.cli.words import iso

    status = path.stat()
    made = datetime.fromtimestamp(status.st_mtime, UTC)
    return {"name": path.name, "path": str(path), "bytes": status.st_size, "made_at": iso(made)}


def _list(call: Call, found: Sequence[Path]) -> None:
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
