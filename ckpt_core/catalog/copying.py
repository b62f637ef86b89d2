"""Copies what a database has of stores into another of whatever kind: to move a catalog, to back one up, to put it
back. Rows get new numbers where they arrive; whatever tables there are is read off the schema.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, UniqueConstraint, delete, func, insert, select

from ckpt_core.catalog import audit, backups, migrate, schema
from ckpt_core.catalog.belonging import of_store
from ckpt_core.catalog.engine import Database
from ckpt_core.catalog.scope import current_store, in_store
from ckpt_core.catalog.stores import enter, known
from ckpt_core.errors import CatalogError, UsageError

__all__ = ["back_up", "copy", "opened", "replaced", "restore"]

Counts = dict[str, int]

_BATCH = 1000
_TABLES = [
    table for table in schema.metadata.sorted_tables if table not in (schema.catalog_version, schema.stores)
]


@contextmanager
def opened(url: str) -> Iterator[Database]:
    """The database at a URL, brought up to date."""
    with closing(Database.open(url)) as database:
        migrate.bring_up_to_date(database)
        yield database


def replaced(source: Database, target: Database) -> list[str]:
    """The stores of `source` of which `target` has something already, which a copy would replace."""
    with source.reading() as connection:
        coming = known(connection)
    with target.reading() as connection:
        there = known(connection)
        return [uid for uid in coming if uid in there and _count(connection, there[uid])["audit_log"]]


def copy(source: Database, target: Database, *, only: str | None = None) -> Counts:
    """Replaces what `target` has of each store of `source` (or of one) by what that has; the number of rows by table.

    Each store is one transaction. Raises CatalogError; UsageError where `source` and `target` are the same, or rows
    are nobody's yet.
    """
    if str(source) == str(target):
        raise UsageError(f"{source} cannot be copied to itself: name another database", kind="url")
    total: Counts = {}
    with source.reading() as origin:
        for uid, theirs in known(origin).items():
            if only not in (None, uid):
                continue
            if not uid:
                if any(_count(origin, theirs)[table] for table in ("checkpoints", "audit_log")):
                    raise UsageError(
                        f"the catalog {source} does not say yet which store it is of: run `ckpt ls` on that store "
                        "once, then try again",
                        kind="store",
                    )
                continue
            target.store = enter(target, uid)
            for table, count in target.write(_fill, origin, theirs).items():
                total[table] = total.get(table, 0) + count
    return total


def _fill(connection: Connection, origin: Connection, theirs: int) -> Counts:
    for table in reversed(_TABLES):
        connection.execute(delete(table).where(of_store(table)))
    numbers: dict[Table, dict[int, int]] = {schema.stores: {theirs: current_store()}}
    for table in _TABLES:
        numbers[table] = _fill_table(connection, origin, theirs, table, numbers)
    if audit.first_broken(connection) is not None:
        with in_store(theirs):
            broken_before = audit.first_broken(origin) is not None
        if not broken_before:
            raise CatalogError("the audit trail did not arrive as it was: try again", kind="database")
    with in_store(theirs):
        expected = _count(origin, theirs)
    found = _count(connection, current_store())
    if found != expected:
        lacking = next(name for name in expected if found[name] != expected[name])
        raise CatalogError(
            f"{expected[lacking]} rows of {lacking} were to be copied, and {found[lacking]} are there: try again",
            kind="database",
        )
    return found


def _fill_table(
    connection: Connection,
    origin: Connection,
    theirs: int,
    table: Table,
    numbers: Mapping[Table, Mapping[int, int]],
) -> dict[int, int]:
    """Copies a table; the new number of each row by its old one, where rows have numbers that others refer to."""
    fresh = table.autoincrement_column is not None
    parents = {key.parent.name: numbers[key.column.table] for key in table.foreign_keys}
    key = next((c for c in table.constraints if isinstance(c, UniqueConstraint)), None)
    columns = [column.name for column in key.columns] if fresh and key is not None else []
    old: dict[tuple[Any, ...], int] = {}
    with in_store(theirs):
        query = select(table).where(of_store(table)).order_by(*table.primary_key.columns)
        rows = origin.execute(query, execution_options={"yield_per": _BATCH})
    with rows:
        for batch in rows.mappings().partitions():
            made = []
            for row in batch:
                values = {name: value for name, value in row.items() if not fresh or name != "id"}
                values |= {name: parent[values[name]] for name, parent in parents.items()}
                made.append(values)
                if columns:
                    old[tuple(values[name] for name in columns)] = row["id"]
            connection.execute(insert(table), made)
    if not columns:
        return {}
    found = connection.execute(
        select(table.c.id, *(table.c[name] for name in columns)).where(of_store(table))
    )
    return {old[tuple(values)]: number for number, *values in found}


def _count(connection: Connection, store: int) -> Counts:
    with in_store(store):
        return {
            table.name: connection.scalar(select(func.count()).select_from(table).where(of_store(table))) or 0
            for table in _TABLES
        }


def back_up(database: Database, store: str, path: Path, reason: str, *, spare: Path | None = None) -> Path:
    """A copy of what a server has of a store, as an SQLite file among the backups of `path`, where the catalog
    would be if it were a file. Raises CatalogError (kind `backup`)."""
    with tempfile.TemporaryDirectory() as folder:
        with opened(f"sqlite:///{folder}/{path.name}") as target:
            copy(database, target, only=store)
        return backups.back_up(Path(folder) / path.name, reason, beside=path, spare=spare)


def restore(database: Database, store: str, path: Path, name: str | None = None) -> Path:
    """Puts a copy (the newest, or the one of that name) in the place of what a server has of a store; returns which
    it was. What is there now is backed up first. Raises NotFoundError, CatalogError."""
    chosen = backups.choose(path, name)
    with ExitStack() as stack:
        # It may be of an earlier revision, and stays what it is.
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        copied = Path(shutil.copyfile(chosen, Path(folder) / path.name))
        source = stack.enter_context(opened(f"sqlite:///{copied}"))
        enter(source, store)
        back_up(database, store, path, "restore", spare=chosen)
        copy(source, database, only=store)
    return chosen
