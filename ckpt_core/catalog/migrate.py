"""Brings the tables to the revision that this version of the engine knows, when a catalog is opened.

The revisions themselves are in `migrations/`. Alembic is imported only where an older catalog is upgraded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection, Table, insert, inspect, select

from ckpt_core.catalog import dialect, stores, way_back
from ckpt_core.catalog.backups import back_up
from ckpt_core.catalog.engine import Database
from ckpt_core.catalog.schema import REVISIONS, catalog_version, metadata
from ckpt_core.errors import CatalogError, CkptError, FormatError, UsageError

__all__ = ["bring_up_to_date", "check", "revision", "take_back", "upgrade"]

_log = logging.getLogger("ckpt_core.catalog")

SCRIPTS = "ckpt_core.catalog:migrations"


def bring_up_to_date(
    database: Database, *, scripts: str = SCRIPTS, revisions: Sequence[str] = REVISIONS
) -> Path | None:
    """Creates what is missing and upgrades what is older, in one transaction; the backup made, if any.

    Where nothing is to be done this is one SELECT. Two processes may do it at once: one does, one waits.
    Raises FormatError for a catalog of a newer version, CatalogError where the database will not do.
    """
    head = revisions[-1]
    _refuse_views(database)
    found = revision(database)
    if found == head:
        return None
    _refuse_newer(database, found, revisions)
    if database.read_only:
        raise database.error("read-only", "it would have to be created or upgraded first")
    with database.altering() as connection:
        found = _finished(database, connection, revisions, scripts)
        if found == head:
            return None
        if found is None:
            _create(connection, head)
            return None
        _refuse_newer(database, found, revisions)
        return _change(database, connection, found, head, scripts)


def take_back(database: Database, wanted: str) -> Path | None:
    """Brings the tables back to an earlier revision, for an earlier version of ckpt-core; the backup made, if any.

    Raises UsageError for a revision that is none, CatalogError where the earlier one cannot hold what is there.
    """
    with database.altering() as connection:
        found = _finished(database, connection, REVISIONS, SCRIPTS)
        _refuse_newer(database, found, REVISIONS)
        if found is None or wanted not in REVISIONS[: REVISIONS.index(found) + 1]:
            raise UsageError(
                f"the catalog {database} is of revision {found}: there is no way back to {wanted!a}",
                kind="revision",
            )
        return None if found == wanted else _change(database, connection, found, wanted, SCRIPTS)


def _finished(
    database: Database, connection: Connection, revisions: Sequence[str], scripts: str
) -> str | None:
    """The revision of the tables; before that, a way back that was interrupted is finished: from in between no way
    leads up."""
    found = _revision(connection, database)
    wanted = way_back.wanted(found)
    if wanted is None:
        return found
    place = way_back.place(connection)
    _refuse_newer(database, place, revisions)
    _log.warning(
        "the catalog %s was left on its way back to revision %s: this is finished first", database, wanted
    )
    _change(database, connection, place or wanted, wanted, scripts)
    return wanted


def _change(database: Database, connection: Connection, found: str, wanted: str, scripts: str) -> Path | None:
    backup = _back_up(database, found)
    _log.info("the catalog %s goes from revision %s to %s; backup: %s", database, found, wanted, backup)
    try:
        if wanted <= found and dialect.ends_at_changes_of_tables(connection):
            _go_back(connection, found, wanted, scripts)
        else:
            upgrade(connection, scripts, wanted)
        _check_references(connection)
    except CkptError:
        raise
    except Exception as error:
        state = (
            "is half done; try again, which goes on where this ended"
            if dialect.ends_at_changes_of_tables(connection)
            else "was left as it was"
        )
        raise CatalogError(
            f"the catalog {database} could not be brought from revision {found} to {wanted} ({error}) and {state}; "
            f"backup: {backup}; `ckpt reindex` makes a new one from the store",
            kind="migration",
            url=str(database),
            backup=backup,
        ) from error
    return backup


def _go_back(connection: Connection, found: str, wanted: str, scripts: str) -> None:
    """Leaves a mark for as long as it lasts: the tables may stay in between."""
    way_back.begin(connection, found, wanted)
    try:
        upgrade(connection, scripts, wanted, way_back.progress)
    except ValueError:  # a revision that cannot hold what there is says so before it changes anything
        way_back.end(connection, way_back.place(connection) or found)
        raise
    way_back.end(connection, wanted)


def check(database: Database) -> None:
    """Whether a catalog of this revision is all there. Raises CatalogError."""
    with database.reading() as connection:
        lacking = sorted(set(metadata.tables) - set(inspect(connection).get_table_names()))
        if lacking:
            raise database.error("database", f"it has no table {lacking[0]}")
        if connection.dialect.name == "sqlite":
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if found != "ok":
                raise database.error("corrupt", str(found))


def upgrade(
    connection: Connection, scripts: str = SCRIPTS, wanted: str = "head", version: Table = catalog_version
) -> None:
    """Runs every revision on the way to this one, up or down, inside the caller's transaction. `version`: the table
    that says where the others are."""
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection, "version_table": version.name})
    config.set_main_option("script_location", scripts.replace("%", "%%"))
    back = wanted in REVISIONS and (_version(connection, version) or "") > wanted
    (command.downgrade if back else command.upgrade)(config, wanted)


def _refuse_views(database: Database) -> None:
    """A view in the place of a table may have no end, and then neither has the first question."""
    if database.engine.dialect.name != "sqlite":
        return
    with database.reading() as connection:
        views = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'view'").scalars()
        strange = sorted(metadata.tables.keys() & set(views))
    if strange:
        raise CatalogError(
            f"the catalog {database} has views in the place of tables ({', '.join(strange)}): move it away, "
            "`ckpt reindex` makes a new one from the store",
            kind="corrupt",
            url=str(database),
        )


def revision(database: Database) -> str | None:
    """The revision of a catalog's tables; None where there are none. One SELECT. Raises CatalogError."""
    try:
        with database.reading() as connection:
            return _version(connection)
    except CatalogError as error:
        if error.kind != "database":
            raise
        return None  # no such table, most likely: `_revision` looks closer


def _revision(connection: Connection, database: Database) -> str | None:
    """The revision; None for a database without any of our tables."""
    present = set(inspect(connection).get_table_names())
    found = _version(connection) if catalog_version.name in present else None
    if found is not None or catalog_version.name in present:
        return found
    ours = present & (set(metadata.tables) - {catalog_version.name})
    if ours:
        raise CatalogError(
            f"the database {database} has tables named {', '.join(sorted(ours))}, but not of a catalog: "
            "give the catalog a database of its own",
            kind="foreign",
            url=str(database),
        )
    return None


def _version(connection: Connection, table: Table = catalog_version) -> str | None:
    found: str | None = connection.scalar(select(table.c.version_num))
    return found


def _refuse_newer(database: Database, found: str | None, revisions: Sequence[str]) -> None:
    if found is not None and way_back.wanted(found) is None and found not in revisions:
        raise FormatError(
            f"the catalog {database} is of revision {found}, newer than this version of ckpt-core knows "
            f"({revisions[-1]}): upgrade with `pip install -U ckpt-core`",
            kind="newer",
            url=str(database),
            revision=found,
        )


def _create(connection: Connection, head: str) -> None:
    """All tables at once, as the revisions together would make them; a test holds the two equal.

    The version's table is the first: tables beside it while it is empty are what somebody who was killed left.
    """
    metadata.drop_all(connection)
    catalog_version.create(connection)
    metadata.create_all(connection)
    stores.begin(connection)
    connection.execute(insert(catalog_version).values(version_num=head))


def _check_references(connection: Connection) -> None:
    """What SQLite did not look at while foreign keys were off."""
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if broken is not None:
            raise ValueError(f"a row of {broken[0]} refers to nothing in {broken[2]}")


def _back_up(database: Database, revision: str) -> Path | None:
    """A copy of an SQLite file beside it, by SQLite's online backup; its path.

    Called while this process holds the write lock and has changed nothing: the copy is what was there.
    Servers are backed up by those who run them: None.
    """
    if database.path is None:
        if database.engine.dialect.name != "sqlite":
            _log.warning("the catalog %s is upgraded without a backup: its server's own must do", database)
        return None
    try:
        return back_up(database.path, revision)
    except CatalogError as error:
        raise CatalogError(
            f"the catalog {database} was not upgraded: {error}", kind="backup", url=str(database)
        ) from error
