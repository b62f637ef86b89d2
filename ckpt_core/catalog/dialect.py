"""What differs between databases, and nothing else: exact text, upserts, locks, and what an error means.

The only module that may write SQL, or read an error code, of one database.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import ColumnElement, Connection, Dialect, String, Table, Text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as LockTimeoutError
from sqlalchemy.types import TypeEngine

__all__ = [
    "begin",
    "connect_arguments",
    "described",
    "ends_at_changes_of_tables",
    "error_kind",
    "exact_text",
    "exactly",
    "insert_new",
    "is_conflict",
    "long_text",
    "migrating",
    "set_up_connection",
    "set_up_session",
    "transaction_options",
    "upsert",
    "upsert_bulk",
    "without_foreign_keys",
]

Row = Mapping[str, Any]

_WRITES = "ckpt_writes"
_LOCK = 0x636B7074  # "ckpt"

_SQLITE_KINDS = {
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_CORRUPT: "corrupt",
    sqlite3.SQLITE_NOTADB: "corrupt",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_CANTOPEN: "unavailable",
    sqlite3.SQLITE_IOERR: "unavailable",
    sqlite3.SQLITE_PERM: "unavailable",
    sqlite3.SQLITE_AUTH: "unavailable",
}
_POSTGRESQL_KINDS = {
    "55P03": "locked",  # lock_not_available
    "40001": "locked",  # serialization_failure
    "40P01": "locked",  # deadlock_detected
    "25006": "read-only",
    "42501": "read-only",  # insufficient_privilege
    "53100": "full",
    "XX001": "corrupt",
    "XX002": "corrupt",
}
_MYSQL_KINDS = {
    1205: "locked",
    1213: "locked",
    1020: "locked",  # MariaDB: changed since it was read
    1290: "read-only",
    1792: "read-only",
    1021: "full",
    1034: "corrupt",
    1142: "read-only",  # this command is denied
    1040: "unavailable",  # too many connections
    1044: "unavailable",  # no access to the database
    1045: "unavailable",  # no access at all
    1049: "unavailable",  # no such database
    1053: "unavailable",  # it is shutting down
    1927: "unavailable",  # the connection was killed
}
_CONFLICTS = {"40001", "40P01", 1213, 1020}


def exact_text(dialect: Dialect, length: int) -> TypeEngine[Any]:
    """A text column that compares by code points. SQLite does so by itself."""
    if dialect.name == "postgresql":
        return String(length, collation="C")
    if dialect.name in ("mysql", "mariadb"):
        from sqlalchemy.dialects.mysql import VARCHAR

        # Collations without padding: with others "a" and "a " are one name.
        collation = "utf8mb4_nopad_bin" if getattr(dialect, "is_mariadb", False) else "utf8mb4_0900_bin"
        return VARCHAR(length, charset="utf8mb4", collation=collation)
    return String(length)


def long_text(dialect: Dialect) -> TypeEngine[Any]:
    """Text of some megabytes; a plain TEXT of MySQL ends at 64 KiB."""
    if dialect.name in ("mysql", "mariadb"):
        from sqlalchemy.dialects.mysql import MEDIUMTEXT

        return MEDIUMTEXT(charset="utf8mb4")
    return Text()


def exactly(connection: Connection, column: ColumnElement[str]) -> ColumnElement[str]:
    """A column of long text, to be compared by code points: MySQL's default is that of a dictionary."""
    collation = getattr(exact_text(connection.dialect, 1), "collation", None)
    return column if collation is None else column.collate(collation)


def insert_new(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Inserts rows; those whose key is there already stay as they are."""
    if not rows:
        return
    if connection.dialect.name in ("mysql", "mariadb"):
        from sqlalchemy.dialects.mysql import insert as mysql_insert

        # Not INSERT IGNORE, which would also hide values cut short.
        first = next(iter(rows[0]))
        kept = {first: table.c[first]}
        connection.execute(mysql_insert(table).on_duplicate_key_update(kept), list(rows))
        return
    connection.execute(_conflicting_insert(connection, table).on_conflict_do_nothing(), list(rows))


def upsert(connection: Connection, table: Table, keys: Sequence[str], rows: Sequence[Row]) -> None:
    """Inserts rows, or overwrites the columns given where a row has these keys. No key twice in `rows`."""
    if rows:
        connection.execute(_upserting_insert(connection, table, keys, list(rows[0])), list(rows))


def upsert_bulk(
    connection: Connection,
    table: Table,
    keys: Sequence[str],
    columns: Sequence[str],
    rows: Sequence[tuple[int | float | str | None, ...]],
) -> None:
    """`upsert` for very many rows, of values that need no conversion, as tuples in the order of `columns`,
    which is that of the table.

    SQLAlchemy writes the statement, but does not look at each row, which took half of the time.
    """
    if not rows:
        return
    statement = _upserting_insert(connection, table, keys, columns)
    compiled = statement.compile(dialect=connection.dialect, column_keys=list(columns))
    if compiled.positiontup is None:
        connection.exec_driver_sql(str(compiled), [dict(zip(columns, row, strict=True)) for row in rows])
    else:
        # The order of the statement is the table's: a caller that has another would mix up columns.
        assert compiled.positiontup == list(columns), compiled.positiontup
        connection.exec_driver_sql(str(compiled), list(rows))


def _upserting_insert(
    connection: Connection, table: Table, keys: Sequence[str], columns: Sequence[str]
) -> Any:
    rest = [name for name in columns if name not in keys]
    if connection.dialect.name in ("mysql", "mariadb"):
        from sqlalchemy.dialects.mysql import insert as mysql_insert

        mine = mysql_insert(table)
        return mine.on_duplicate_key_update({name: mine.inserted[name] for name in rest})
    insert = _conflicting_insert(connection, table)
    update = {name: insert.excluded[name] for name in rest}
    return insert.on_conflict_do_update(index_elements=list(keys), set_=update)


def _conflicting_insert(connection: Connection, table: Table) -> Any:
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as postgresql_insert

        return postgresql_insert(table)
    from sqlalchemy.dialects.sqlite import insert as sqlite_insert

    return sqlite_insert(table)


def set_up_connection(connection: Any, *, timeout: float, write_ahead: bool | None) -> None:
    """Readies a new SQLite connection. `connection` is the driver's own; `write_ahead` None: change nothing.

    synchronous: in WAL mode NORMAL, since a power cut can then take the last transactions but never the
    whole, and what they said is in the store too. In any other mode NORMAL may corrupt: FULL.
    """
    connection.isolation_level = None  # the driver begins nothing by itself: `begin` does
    connection.execute(f"PRAGMA busy_timeout = {int(timeout * 1000):d}")
    connection.execute("PRAGMA foreign_keys = ON")
    if write_ahead is not None:
        mode = _keep_journal(connection, "wal" if write_ahead else "delete")
        connection.execute("PRAGMA synchronous = NORMAL" if mode == "wal" else "PRAGMA synchronous = FULL")


def _keep_journal(connection: Any, wanted: str) -> str:
    """Puts the file in this journal mode, which it keeps; returns the mode that it is in afterwards.

    Processes that make one catalog at once all get here. The change of mode does not wait for another's
    lock, but BEGIN EXCLUSIVE does: so wait there and look again.
    """
    for _ in range(100):
        mode = str(connection.execute("PRAGMA journal_mode").fetchone()[0])
        if mode in (wanted, "memory"):
            return mode
        try:
            return str(connection.execute(f"PRAGMA journal_mode = {wanted}").fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
    return mode


def connect_arguments(backend: str, timeout: float) -> dict[str, Any]:
    """What a server's driver is told, so that one that does not answer is given up: a save waits for it."""
    arguments: dict[str, Any] = {"connect_timeout": max(2, math.ceil(timeout))}
    if backend == "postgresql":
        arguments |= {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
        arguments |= {"tcp_user_timeout": 30_000}
    else:
        arguments |= {"read_timeout": 120, "write_timeout": 120}
    return arguments


def set_up_session(connection: Any, dialect: Dialect, *, timeout: float) -> None:
    """Readies a new connection to a server, whatever its administrator set. `connection` is the driver's own."""
    if dialect.name == "postgresql":
        settings = f"SET lock_timeout = {max(1, round(timeout * 1000)):d}"
        connection.autocommit = True  # a rollback would take it back
    else:
        settings = (
            "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', time_zone = '+00:00', "
            f"default_storage_engine = InnoDB, innodb_lock_wait_timeout = {max(1, math.ceil(timeout)):d}"
        )
    with connection.cursor() as cursor:
        cursor.execute(settings)
    if dialect.name == "postgresql":
        connection.autocommit = False


def transaction_options(dialect: Dialect, *, writes: bool) -> dict[str, Any]:
    """Execution options of a connection that is about to begin a transaction.

    Servers: a reader sees one state throughout; a writer sees what others committed since, as it must find
    the rows that its inserts ran into. Neither is the default everywhere.
    """
    if dialect.name == "sqlite":
        return {_WRITES: writes}
    return {"isolation_level": "READ COMMITTED" if writes else "REPEATABLE READ"}


def begin(connection: Connection) -> None:
    """Begins an SQLite transaction.

    One that will write takes the write lock now: a reader that turns writer later is refused at once if
    another wrote in between, whatever the busy timeout.
    """
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def without_foreign_keys(connection: Connection) -> Iterator[None]:
    """For a migration: SQLite alters a table by copying it and dropping the old one, which would take along
    the rows that refer to it. Call it before the transaction begins; inside, the setting cannot change."""
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.dbapi_connection
    driver.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys = ON")


def described(connection: Connection) -> str:
    """The database and its version, as people call them."""
    dialect = connection.dialect
    if dialect.name == "sqlite":
        return f"SQLite {sqlite3.sqlite_version}"
    found = getattr(dialect, "server_version_info", None) or ()
    mariadb = getattr(dialect, "is_mariadb", False)
    name = (
        "MariaDB"
        if mariadb
        else {"postgresql": "PostgreSQL", "mysql": "MySQL"}.get(dialect.name, dialect.name)
    )
    return " ".join((name, ".".join(str(part) for part in found if isinstance(part, int)))).strip()


def ends_at_changes_of_tables(connection: Connection) -> bool:
    """Whether a transaction ends where a table is changed, so that what was done before cannot be undone."""
    return connection.dialect.name in ("mysql", "mariadb")


@contextmanager
def migrating(connection: Connection, *, timeout: float) -> Iterator[None]:
    """A transaction in which one process at a time makes or migrates the tables.

    MySQL ends transactions at each change of a table: there the lock is the connection's. SQLite's write lock,
    taken by `begin`, is enough.
    """
    if ends_at_changes_of_tables(connection):
        with _named_lock(connection, timeout), connection.begin():
            yield
        return
    with connection.begin():
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK:d})")
        yield


@contextmanager
def _named_lock(connection: Connection, timeout: float) -> Iterator[None]:
    """MySQL's locks are the whole server's, so that the database is a part of the name, which has 64 characters."""
    name = f"CONCAT('ckpt:', MD5(DATABASE()), ':{_LOCK:d}')"
    if connection.exec_driver_sql(f"SELECT GET_LOCK({name}, {max(1, math.ceil(timeout)):d})").scalar() != 1:
        raise LockTimeoutError("another process is changing its tables")
    connection.commit()
    try:
        yield
    finally:
        try:
            connection.exec_driver_sql(f"SELECT RELEASE_LOCK({name})")
            connection.commit()
        except BaseException:
            connection.invalidate()  # the lock goes with it, and must not wait in the pool
            raise


def is_conflict(error: BaseException | None) -> bool:
    """Whether a database undid a transaction for the sake of another, so that it may go well the next time."""
    cause: Any = error.orig if isinstance(error, DBAPIError) else None
    if cause is None or isinstance(cause, sqlite3.Error):
        return False
    return (getattr(cause, "sqlstate", None) or next(iter(cause.args), None)) in _CONFLICTS


def error_kind(error: DBAPIError) -> str:
    """The `kind` of the CatalogError that a database's refusal becomes; "database" for one without a name."""
    cause: Any = error.orig
    if isinstance(cause, sqlite3.Error):
        # The low byte is the primary code; the rest says more than anyone acts upon.
        return _SQLITE_KINDS.get(getattr(cause, "sqlite_errorcode", 0) & 0xFF, "database")
    if error.connection_invalidated:
        return "unavailable"
    code = cause.args[0] if cause is not None and cause.args else None
    if isinstance(code, int):  # MySQL's own say more than the states that come with them
        return "unavailable" if 2000 <= code < 2100 else _MYSQL_KINDS.get(code, "database")
    state = getattr(cause, "sqlstate", None)
    if isinstance(state, str):
        return "unavailable" if state[:2] in ("08", "57") else _POSTGRESQL_KINDS.get(state, "database")
    return "unavailable" if type(error).__name__ == "OperationalError" else "database"
