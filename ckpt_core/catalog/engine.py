"""Opens a database by its URL and lends transactions of it; its errors leave here as CatalogError.

What is asked of the database is none of this module's business. No message has a password in it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as LockTimeoutError
from sqlalchemy.pool import StaticPool

from ckpt_core.catalog import dialect
from ckpt_core.catalog.mounts import is_on_network
from ckpt_core.catalog.schema import stores
from ckpt_core.catalog.scope import STORE, in_store
from ckpt_core.catalog.types import as_column
from ckpt_core.errors import CatalogError, MissingExtraError, UsageError

__all__ = ["Database", "parse", "shown"]

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("ckpt_core.catalog")

_TURNS = 10  # so often a transaction is tried that others keep undoing
_RECYCLED = 1800.0  # seconds: servers and what stands before them forget connections that nobody uses
_EXTRAS = {"postgresql": "postgres", "mysql": "mysql", "mariadb": "mysql"}

_ADVICE = {
    "locked": "another process holds it: try again, or give a longer timeout",
    "corrupt": "`ckpt reindex` moves it aside and makes a new one: the store has all that the catalog had",
    "read-only": "this user may only read it",
    "full": "free some space on its disk",
    "unavailable": "see that its folder or server is there and that this user may write to it",
    "database": "`ckpt reindex` rebuilds the catalog from the store",
}


class Database:
    """One database, shared by all threads of a process.

    `reading()` and `writing()` lend a connection inside one transaction, about the rows of `store`. A thread
    holds one of them at a time. There is one writer at a time to a store: threads queue here, in the order
    they came, and only processes are left to SQLite's busy timeout or a server's lock of the store's row; so
    they do not get in each other's way in the middle. In memory there is one connection, so readers queue as
    well.
    """

    def __init__(self, engine: Engine, *, path: Path | None, timeout: float, read_only: bool) -> None:
        self.engine = engine
        self.path = path
        self.read_only = read_only
        self.store: int | None = None
        """The catalog's number of the store; None until that is known."""
        self._timeout = timeout
        self._one_connection = isinstance(engine.pool, StaticPool)
        self._turn = threading.Lock()
        self._owner: int | None = None
        self._process = os.getpid()
        self._closed = False

    @classmethod
    def open(cls, url: str, *, timeout: float = 30.0, mounts: Path = Path("/proc/mounts")) -> Database:
        """The database at an SQLAlchemy URL. Nothing is read yet, so a broken one shows at the first use.

        `timeout`: seconds to wait for another writer. Raises UsageError, MissingExtraError.
        """
        parsed = parse(url)
        if parsed.get_backend_name() == "sqlite":
            return cls._open_sqlite(parsed, timeout, mounts)
        arguments = dialect.connect_arguments(parsed.get_backend_name(), timeout)
        engine = _create(
            parsed,
            pool_pre_ping=True,  # a server that was away may be back, and its old connections are not
            pool_recycle=_RECYCLED,
            pool_timeout=timeout,
            connect_args={name: value for name, value in arguments.items() if name not in parsed.query},
        )

        def connected(connection: object, record: object) -> None:
            dialect.set_up_session(connection, engine.dialect, timeout=timeout)

        event.listen(engine, "connect", connected)
        return cls(engine, path=None, timeout=timeout, read_only=False)

    @classmethod
    def _open_sqlite(cls, url: URL, timeout: float, mounts: Path) -> Database:
        if url.database in (None, "", ":memory:") or url.query.get("mode") == "memory":
            arguments = {"check_same_thread": False}
            engine = _create(url, poolclass=StaticPool, connect_args=arguments)
            _listen(engine, timeout, write_ahead=None)
            return cls(engine, path=None, timeout=timeout, read_only=False)
        path, url, read_only = _locate(url)
        write_ahead = None if read_only else not is_on_network(path, mounts)
        if write_ahead is False:
            _log.warning(
                "the catalog %s is on a network file system: write-ahead logging is off, since all who have "
                "the file open would have to share memory; several machines that write may still corrupt it",
                path,
            )
        engine = _create(url, pool_timeout=timeout)
        _listen(engine, timeout, write_ahead)
        return cls(engine, path=path, timeout=timeout, read_only=read_only)

    def __str__(self) -> str:
        return shown(self.engine.url)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the catalog throughout. Raises CatalogError."""
        with self._my_turn(self._one_connection), self._translating(), self._transaction() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that may write: committed at the end, undone by an exception. Raises CatalogError."""
        with self._my_turn(), self._translating(), self._transaction(writes=True) as connection:
            if self.store is not None:
                # SQLite has locked all already, and leaves FOR UPDATE out.
                mine = select(stores.c.id).where(stores.c.id == STORE)
                connection.execute(mine.with_for_update(key_share=True))
            yield connection

    def write(
        self, work: Callable[Concatenate[Connection, P], T], *arguments: P.args, **options: P.kwargs
    ) -> T:
        """What `work` returns, called with a connection as by `writing`: once more where the database undid it for
        another transaction's sake. Raises CatalogError."""
        for _ in range(_TURNS - 1):
            try:
                with self.writing() as connection:
                    return work(connection, *arguments, **options)
            except CatalogError as error:
                if not dialect.is_conflict(error.__cause__):
                    raise
                _log.info("once more, as another transaction was in the way: %s", error)
        with self.writing() as connection:
            return work(connection, *arguments, **options)

    @contextmanager
    def altering(self) -> Iterator[Connection]:
        """A writing transaction of one process at a time, which may change tables. Raises CatalogError."""
        with (
            self._my_turn(),
            self._translating(),
            self._connect(writes=True) as connection,
            dialect.without_foreign_keys(connection),
            dialect.migrating(connection, timeout=self._timeout),
        ):
            yield connection

    def close(self) -> None:
        """Closes every connection. Whoever asks afterwards is told so."""
        self._closed = True
        self.engine.dispose()

    def error(self, kind: str, cause: str = "") -> CatalogError:
        """The CatalogError of this kind about this database."""
        because = f": {cause}" if cause else ""
        advice = _ADVICE.get(kind, _ADVICE["database"])
        return CatalogError(
            f"the catalog {self} is {_STATES.get(kind, kind)}{because}; {advice}", kind=kind, url=str(self)
        )

    @contextmanager
    def _transaction(self, *, writes: bool = False) -> Iterator[Connection]:
        mine = nullcontext() if self.store is None else in_store(self.store)
        with mine, self._connect(writes=writes) as connection, connection.begin():
            yield connection

    def _connect(self, *, writes: bool) -> Connection:
        options = dialect.transaction_options(self.engine.dialect, writes=writes)
        return self.engine.connect().execution_options(**options)

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self.error(dialect.error_kind(error), str(error.orig)) from error
        except LockTimeoutError as error:
            raise self.error("locked", str(error)) from error

    @contextmanager
    def _my_turn(self, queue: bool = True) -> Iterator[None]:
        self._notice_fork()
        if self._closed:
            raise CatalogError(f"the catalog {self} was closed: open it again", kind="closed", url=str(self))
        if not queue:
            yield
            return
        me = threading.get_ident()
        if self._owner == me:
            raise UsageError(
                "this thread is already inside a transaction of the catalog: use what rebuild() gave",
                kind="nested",
            )
        if not self._turn.acquire(timeout=self._timeout):
            raise self.error("locked", "another thread of this process is writing")
        self._owner = me
        try:
            yield
        finally:
            self._owner = None
            self._turn.release()

    def _notice_fork(self) -> None:
        """A forked child must neither use nor close its parent's connections, nor wait for its threads."""
        if self._process == os.getpid():
            return
        self._process = os.getpid()
        self._turn = threading.Lock()
        self._owner = None
        if not self._one_connection:
            self.engine.dispose(close=False)


def parse(url: str) -> URL:
    """An SQLAlchemy URL. Raises UsageError, which does not repeat it: a password may stand anywhere in it."""
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        raise UsageError(
            "this is no URL of SQLAlchemy's: write it as sqlite:////folder/catalog.db or "
            "postgresql+psycopg://user@host/database, a password with %-escapes for what is not a letter or digit",
            kind="url",
        ) from None


def shown(url: URL) -> str:
    """A URL as people may see it: without passwords, also those that drivers take as options."""
    hidden = {name: "***" for name in url.query if "pass" in name.lower() and name != "passfile"}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


_STATES = {"database": "not usable", "full": "full", "read-only": "read-only"}


def _create(url: URL, **options: object) -> Engine:
    try:
        return create_engine(url, json_serializer=as_column, **options)
    except (NoSuchModuleError, ArgumentError) as error:
        raise UsageError(
            f"{url.drivername!r} is no database known here: sqlite, postgresql+psycopg or mysql+pymysql",
            kind="url",
        ) from error
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(url.get_backend_name())
        command = f"pip install 'ckpt-core[{extra}]'" if extra else f"pip install {error.name}"
        raise MissingExtraError(
            f"a catalog in {url.get_backend_name()} needs its driver: {command}"
        ) from error


def _listen(engine: Engine, timeout: float, write_ahead: bool | None) -> None:
    def connected(connection: sqlite3.Connection, record: object) -> None:
        dialect.set_up_connection(connection, timeout=timeout, write_ahead=write_ahead)

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", dialect.begin)


def _locate(url: URL) -> tuple[Path, URL, bool]:
    """Where the file is, the URL to open it by, and whether it can only be read.

    The path is made absolute, so that messages name the file, whatever folder is current.
    """
    database = url.database or ""
    if url.query.get("uri") == "true" and database.startswith("file:"):
        return Path(os.path.abspath(database[len("file:") :])), url, url.query.get("mode") == "ro"
    path = Path(os.path.abspath(database))
    url = url.set(database=str(path))
    if not path.exists() or (_writable(path) and _writable(path.parent)):
        return path, url, False
    # SQLite cannot open a WAL file in a folder where it cannot make its helper files, unless it is told that
    # nobody writes. Someone may, where these files exist; then they can be used, too.
    query = {"uri": "true", "mode": "ro"}
    if not path.with_name(path.name + "-wal").exists():
        query["immutable"] = "1"
    return path, url.set(database="file:" + quote(str(path)), query=query), True


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
