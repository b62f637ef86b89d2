"""How a catalog in SQLite is opened, and what its refusals become."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import event, make_url

from ckpt_core.catalog import Catalog, dialect, migrate
from ckpt_core.catalog.engine import Database
from ckpt_core.errors import CatalogError, MissingExtraError, UsageError
from contract.catalog_case import MORE, checkpoint, uid

NOBODY = 65_534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


def pragma(database: Database, name: str) -> object:
    with database.reading() as connection:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


@contextmanager
def writing_elsewhere(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


# -- settings


def test_a_file_is_in_write_ahead_mode(path: Path, url: str) -> None:
    with Catalog.open(url, timeout=7) as catalog, ExitStack() as held:
        # Every connection of the pool, not only the first.
        for _ in range(3):
            connection = held.enter_context(catalog._database.reading())
            settings = ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
            found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in settings]
            assert found == ["wal", 1, 1, 7_000]
    assert os.listdir(path.parent) == ["catalog.db"]


@pytest.mark.parametrize("existing", [False, True])
def test_on_a_network_file_system_there_is_no_write_ahead_log(
    path: Path, url: str, existing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if existing:
        with Catalog.open(url) as catalog:
            catalog.put_checkpoint(checkpoint(1), [])
    mounts = path.with_name("mounts")
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {path.parent} nfs4 rw 0 0\n")
    database = Database.open(url, mounts=mounts)
    migrate.bring_up_to_date(database)
    assert (pragma(database, "journal_mode"), pragma(database, "synchronous")) == ("delete", 2)
    with Catalog(database) as catalog:
        catalog.put_checkpoint(checkpoint(2), [])
        assert catalog.ids() == ({uid(1), uid(2)} if existing else {uid(2)})
    assert "network file system" in caplog.text
    assert str(path) in caplog.text


def test_on_a_local_file_system_nothing_is_said(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "ckpt_core.catalog"):
        Catalog.open(url).close()
    assert caplog.text == ""


def test_two_catalogs_in_memory_are_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Catalog.open("sqlite://") as one, Catalog.open("sqlite:///:memory:") as other:
        one.put_checkpoint(checkpoint(1), [])
        assert one.ids() == {uid(1)}
        assert other.ids() == set()
    assert os.listdir(tmp_path) == []


def test_a_relative_path_stays_where_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(path.parent)
    with Catalog.open("sqlite:///catalog.db") as catalog:
        monkeypatch.chdir(elsewhere)
        with catalog._database.reading():
            catalog.put_checkpoint(checkpoint(1), [])  # on a connection that is made now
        assert catalog.url == f"sqlite:///{path}"
    assert os.listdir(elsewhere) == []
    assert path.exists()


def test_what_was_put_is_there_when_opened_again(url: str) -> None:
    with Catalog.open(url) as catalog:
        catalog.put_checkpoint(checkpoint(1), [])
    with Catalog.open(url) as catalog:
        assert catalog.checkpoints() == [checkpoint(1)]


class Contended:
    """A connection that finds the file locked by another at its first change of the journal mode."""

    def __init__(self, path: Path) -> None:
        self.real = sqlite3.connect(path)
        self.path = path
        self.changes = 0

    def execute(self, sql: str) -> sqlite3.Cursor:
        if not sql.startswith("PRAGMA journal_mode ="):
            return self.real.execute(sql)
        self.changes += 1
        if self.changes > 1:
            return self.real.execute(sql)
        with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            return self.real.execute(sql)


def test_the_journal_mode_is_changed_once_the_other_process_is_done(path: Path) -> None:
    connection = Contended(path)
    with closing(connection.real):
        dialect.set_up_connection(connection, timeout=0.05, write_ahead=True)
        assert connection.real.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.real.execute("PRAGMA synchronous").fetchone() == (1,)
    assert connection.changes == 2


# -- refusals


def test_locked_by_another_process(path: Path, url: str) -> None:
    with Catalog.open(url, timeout=0.05) as catalog:
        catalog.put_checkpoint(checkpoint(1), [])
        with writing_elsewhere(path):
            with pytest.raises(CatalogError) as caught:
                catalog.put_checkpoint(checkpoint(2), [])
            assert caught.value.kind == "locked"
            assert "try again" in str(caught.value)
            assert caught.value.url == catalog.url
            assert catalog.ids() == {uid(1)}
        catalog.put_checkpoint(checkpoint(2), [])
        assert catalog.ids() == {uid(1), uid(2)}


def test_a_new_catalog_that_is_locked(path: Path, url: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CatalogError) as caught:
            Catalog.open(url, timeout=0.05)
    assert caught.value.kind == "locked"


@pytest.mark.parametrize("where", ["sqlite://", None])
def test_locked_by_another_thread(url: str, where: str | None) -> None:
    with Catalog.open(where or url, timeout=0.05) as catalog, ThreadPoolExecutor(1) as pool:
        with catalog.rebuild():
            error = pool.submit(catalog.put_checkpoint, checkpoint(1), []).exception(timeout=60)
        assert isinstance(error, CatalogError)
        assert error.kind == "locked"
        pool.submit(catalog.put_checkpoint, checkpoint(1), []).result(timeout=60)


def test_a_thread_waits_for_its_turn(url: str) -> None:
    with Catalog.open(url, timeout=60) as catalog, ThreadPoolExecutor(1) as pool:
        started = threading.Event()
        with catalog.rebuild() as rebuild:
            later = pool.submit(lambda: (started.set(), catalog.put_checkpoint(checkpoint(2), [])))
            assert started.wait(60)
            rebuild.put_checkpoints([(checkpoint(1), [])])
        later.result(timeout=60)
        assert catalog.ids() == {uid(1), uid(2)}


@pytest.mark.parametrize("where", ["sqlite://", None])
def test_a_thread_that_rebuilds_cannot_also_write(url: str, where: str | None) -> None:
    with Catalog.open(where or url) as catalog:
        with catalog.rebuild() as rebuild:
            rebuild.put_checkpoints([(checkpoint(1), [])])
            with pytest.raises(UsageError) as caught:
                catalog.put_checkpoint(checkpoint(2), [])
            assert caught.value.kind == "nested"
        assert catalog.ids() == {uid(1)}


def test_no_connection_is_free(url: str) -> None:
    with Catalog.open(url, timeout=0.05) as catalog:
        with ExitStack() as held:
            for _ in range(15):
                held.enter_context(catalog._database.reading())
            with pytest.raises(CatalogError) as caught:
                catalog.ids()
        assert caught.value.kind == "locked"
        assert catalog.ids() == set()


def test_a_file_of_something_else(path: Path, url: str) -> None:
    path.write_bytes(b"This is no database at all. " * 400)
    with pytest.raises(CatalogError) as caught:
        Catalog.open(url)
    assert caught.value.kind == "corrupt"
    assert "ckpt reindex" in str(caught.value)
    assert path.read_bytes().startswith(b"This is no database")


def test_pages_that_were_overwritten(path: Path, url: str) -> None:
    with Catalog.open(url) as catalog:
        catalog.put_checkpoints((checkpoint(number), []) for number in range(500))
    # Page 2 is the version table, which open reads, as it does that of the stores; the rows of checkpoints come far behind.
    with open(path, "r+b") as file:
        file.seek(4_096 * 45)
        file.write(b"\xff" * (path.stat().st_size - 4_096 * 45))
    with Catalog.open(url) as catalog:
        with pytest.raises(CatalogError) as caught:
            catalog.checkpoints()
        assert caught.value.kind == "corrupt"


def test_a_full_disk(url: str) -> None:
    with Catalog.open(url) as catalog:
        catalog.put_checkpoint(checkpoint(1), [])
        engine = catalog._database.engine
        engine.dispose()
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count = 1"))
        with pytest.raises(CatalogError) as caught:
            catalog.put_checkpoints((checkpoint(number), []) for number in range(2, 500))
        assert caught.value.kind == "full"
        assert catalog.ids() == {uid(1)}


def test_a_folder_that_is_not_there(path: Path) -> None:
    with pytest.raises(CatalogError) as caught:
        Catalog.open(f"sqlite:///{path.parent}/nowhere/catalog.db")
    assert caught.value.kind == "unavailable"
    assert not (path.parent / "nowhere").exists()


def test_a_folder_in_place_of_the_file(path: Path, url: str) -> None:
    path.mkdir()
    with pytest.raises(CatalogError) as caught:
        Catalog.open(url)
    assert caught.value.kind == "unavailable"


def test_a_table_that_somebody_dropped(path: Path, url: str) -> None:
    with Catalog.open(url) as catalog:
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("DROP TABLE tags")
        with pytest.raises(CatalogError) as caught:
            catalog.tags("digits")
        assert caught.value.kind == "database"
        assert "ckpt reindex" in str(caught.value)


# -- read only


@pytest.fixture
def shared() -> Iterator[Path]:
    """A catalog in a folder that this test's user may read and not write."""
    folder = Path(tempfile.mkdtemp())
    with Catalog.open(f"sqlite:///{folder}/catalog.db") as catalog:
        catalog.put_checkpoint(checkpoint(1, metrics={"loss": 1.0}), [])
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_folder_that_can_only_be_read(shared: Path) -> None:
    with Catalog.open(f"sqlite:///{shared}/catalog.db") as catalog:
        assert catalog.ids() == {uid(1)}
        assert [c.id for c in catalog.best("digits", "loss", "min")] == [uid(1)]
        with pytest.raises(CatalogError) as caught:
            catalog.put_checkpoint(checkpoint(2), [])
        assert caught.value.kind == "read-only"
        assert catalog.ids() == {uid(1)}
    assert os.listdir(shared) == ["catalog.db"]


def test_a_new_catalog_in_a_folder_that_can_only_be_read(shared: Path) -> None:
    with pytest.raises(CatalogError) as caught:
        Catalog.open(f"sqlite:///{shared}/new.db")
    assert caught.value.kind == "unavailable"


def test_an_older_catalog_that_can_only_be_read(shared: Path) -> None:
    database = Database.open(f"sqlite:///{shared}/catalog.db")
    with pytest.raises(CatalogError) as caught:
        migrate.bring_up_to_date(database, revisions=MORE)
    assert caught.value.kind == "read-only"
    database.close()


def test_reading_only_beside_a_writer_sees_what_it_wrote(path: Path, url: str) -> None:
    with Catalog.open(url) as writer:
        writer.put_checkpoint(checkpoint(1), [])
        with Catalog.open(f"sqlite:///file:{path}?mode=ro&uri=true") as reader:
            writer.put_checkpoint(checkpoint(2), [])
            assert reader.ids() == {uid(1), uid(2)}
            with pytest.raises(CatalogError) as caught:
                reader.audit("save", "x", "ok")
            assert caught.value.kind == "read-only"


# -- URLs


@pytest.mark.parametrize("bad", ["", "no url", "nosuch://host/name", "sqlite+nosuch:///x.db"])
def test_urls_that_mean_nothing(bad: str) -> None:
    with pytest.raises(UsageError) as caught:
        Catalog.open(bad)
    assert caught.value.kind == "url"


def test_a_driver_that_is_not_installed() -> None:
    with pytest.raises(MissingExtraError) as caught:
        Catalog.open("postgresql+pg8000://me:secret@localhost/x")
    assert "pip install 'ckpt-core[postgres]'" in str(caught.value)


def test_a_password_is_never_shown() -> None:
    with Catalog.open("sqlite://") as catalog:
        shown = catalog._database
        shown.engine.url = make_url("mysql://me:secret@host/name")
        assert "secret" not in f"{shown} {shown.error('locked')} {shown.error('locked').url} {catalog.url}"
        assert "me" in str(shown)
