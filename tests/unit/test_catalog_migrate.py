"""The catalog's tables: created, upgraded with a backup, refused when newer or not ours."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from ckpt_core.catalog import Catalog, migrate, schema
from ckpt_core.catalog.engine import Database
from ckpt_core.errors import CatalogError, FormatError
from contract.catalog_case import MORE, SCRIPTS, attempt, checkpoint, point, scripts, uid


def rows(path: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def tables(path: Path) -> dict[str, list[str]]:
    """What SQLite was told to create, by name; each part of a statement on its own, in no order.

    A table that was copied and renamed has its name in quotes."""
    found = rows(path, "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {
        name: sorted(re.split(r",\s*\n\s*|\(\s*\n\s*|\s*\n\s*\)", sql.strip().replace('"', "")))
        for name, sql in found
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.db"


@pytest.fixture
def old(path: Path) -> Path:
    """A catalog of the newest revision with something in every table."""
    with Catalog.open(f"sqlite:///{path}") as catalog:
        for number in range(3):
            entry = checkpoint(number, metrics={"loss": float(number)}, tags=(f"t{number}",))
            catalog.put_checkpoint(entry, [("p", 1)])
        catalog.add_metrics("digits", attempt(1), [point(1)])
        catalog.record_check(uid(1), "full", "ok")
        catalog.audit("save", uid(1), "ok")
    return path


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    opened = Database.open(f"sqlite:///{path}", timeout=5)
    yield opened
    opened.close()


# -- fresh


def test_a_fresh_catalog_is_current_and_without_backup(path: Path) -> None:
    with Catalog.open(f"sqlite:///{path}"):
        pass
    assert rows(path, "SELECT version_num FROM catalog_version") == [(schema.HEAD,)]
    assert sorted(os.listdir(path.parent)) == ["catalog.db"]


def test_the_revisions_known_are_those_shipped() -> None:
    directory = ScriptDirectory.from_config(
        Config(attributes={}, config_args={"script_location": str(SCRIPTS)})
    )
    assert [script.revision for script in directory.walk_revisions()][::-1] == list(schema.REVISIONS)
    assert directory.get_current_head() == schema.HEAD


def test_the_revisions_together_make_a_fresh_catalog(path: Path, database: Database) -> None:
    with database.altering() as connection:
        migrate.upgrade(connection)
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "catalog_version"})
        assert compare_metadata(context, schema.metadata) == []
    fresh = path.with_name("fresh.db")
    Catalog.open(f"sqlite:///{fresh}").close()
    assert tables(path) == tables(fresh)
    assert len(tables(fresh)) > 20
    for table in schema.metadata.tables:
        assert rows(path, f"SELECT * FROM {table}") == rows(fresh, f"SELECT * FROM {table}")


def test_the_first_revision_can_be_undone(path: Path, database: Database) -> None:
    from alembic import command

    with database.altering() as connection:
        migrate.upgrade(connection)
        config = Config(attributes={"connection": connection, "version_table": "catalog_version"})
        config.set_main_option("script_location", str(SCRIPTS))
        command.downgrade(config, "base")
    assert set(tables(path)) == {"catalog_version"}


@pytest.mark.parametrize("fresh", [True, False])
def test_alembic_is_not_imported_where_nothing_is_upgraded(path: Path, fresh: bool) -> None:
    if not fresh:
        Catalog.open(f"sqlite:///{path}").close()
    code = """
import sys
from ckpt_core.catalog import Catalog
Catalog.open(sys.argv[1]).close()
print([name for name in ("alembic", "mako", "sqlalchemy") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{path}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "['sqlalchemy']\n"


# -- older


def test_an_older_catalog_is_upgraded_after_a_backup(
    old: Path, database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = rows(old, "SELECT * FROM checkpoints")
    with caplog.at_level(logging.INFO, "ckpt_core.catalog"):
        backup = migrate.bring_up_to_date(database, scripts=scripts(tmp_path), revisions=MORE)
    assert rows(old, "SELECT version_num FROM catalog_version") == [("9999",)]
    assert rows(old, "SELECT DISTINCT note FROM checkpoints") == [("new",)]
    catalog = Catalog(database)
    assert [c.tags for c in catalog.checkpoints("digits")] == [("t0",), ("t1",), ("t2",)]
    assert [c.id for c in catalog.best("digits", "loss", "min")] == [uid(0)]
    assert catalog.packs(uid(2)) == [("p", 1)]
    assert catalog.metric_series("digits", "loss") == [point(1)]
    assert catalog.verify_audit() is None
    assert backup is not None
    assert backup.parent == old.parent / "backups"
    assert os.listdir(backup.parent) == [backup.name]
    assert rows(backup, "SELECT version_num FROM catalog_version") == [(schema.HEAD,)]
    assert rows(backup, "SELECT * FROM checkpoints") == before
    assert rows(backup, "PRAGMA integrity_check") == [("ok",)]
    assert str(backup) in caplog.text


def test_an_upgrade_happens_once(old: Path, database: Database, tmp_path: Path) -> None:
    first = migrate.bring_up_to_date(database, scripts=scripts(tmp_path), revisions=MORE)
    assert migrate.bring_up_to_date(database, scripts=scripts(tmp_path), revisions=MORE) is None
    assert first is not None
    assert len(os.listdir(first.parent)) == 1


def test_foreign_keys_are_on_again_after_an_upgrade(old: Path, database: Database, tmp_path: Path) -> None:
    migrate.bring_up_to_date(database, scripts=scripts(tmp_path), revisions=MORE)
    with pytest.raises(CatalogError), database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM experiments")
    assert len(Catalog(database).ids()) == 3


@pytest.mark.parametrize(
    "more",
    ["raise ZeroDivisionError('halfway')", "op.execute('DELETE FROM experiments')", "op.execute('no SQL')"],
)
def test_an_upgrade_that_fails_changes_nothing(
    old: Path, database: Database, tmp_path: Path, more: str
) -> None:
    before = tables(old)
    with pytest.raises(CatalogError) as caught:
        migrate.bring_up_to_date(database, scripts=scripts(tmp_path, more), revisions=MORE)
    assert caught.value.kind == "migration"
    assert caught.value.backup.exists()
    assert "ckpt reindex" in str(caught.value)
    assert tables(old) == before
    assert rows(old, "SELECT version_num FROM catalog_version") == [(schema.HEAD,)]
    with Catalog.open(f"sqlite:///{old}") as catalog:
        assert len(catalog.ids()) == 3


def test_without_a_backup_nothing_is_upgraded(old: Path, database: Database, tmp_path: Path) -> None:
    (old.parent / "backups").write_text("not a folder")
    with pytest.raises(CatalogError) as caught:
        migrate.bring_up_to_date(database, scripts=scripts(tmp_path), revisions=MORE)
    assert caught.value.kind == "backup"
    assert rows(old, "SELECT version_num FROM catalog_version") == [(schema.HEAD,)]


# -- refused


def test_a_newer_catalog_is_refused(old: Path) -> None:
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("UPDATE catalog_version SET version_num = '99999'")
    with pytest.raises(FormatError) as caught:
        Catalog.open(f"sqlite:///{old}")
    assert caught.value.kind == "newer"
    assert caught.value.revision == "99999"
    assert "upgrade" in str(caught.value)
    assert rows(old, "SELECT count(*) FROM checkpoints") == [(3,)]
    assert not (old.parent / "backups").exists()


def test_tables_of_something_else_are_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE experiments (name TEXT)")
    with pytest.raises(CatalogError) as caught:
        Catalog.open(f"sqlite:///{path}")
    assert caught.value.kind == "foreign"
    assert set(tables(path)) == {"experiments"}


def test_a_database_with_other_tables_takes_a_catalog_too(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE holidays (name TEXT)")
    with Catalog.open(f"sqlite:///{path}") as catalog:
        assert catalog.ids() == set()
    assert {"holidays", "checkpoints"} <= set(tables(path))
