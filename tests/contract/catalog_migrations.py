"""The catalog's suite, part four: tables of every revision, brought up to date and back with rows in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event, text

from ckpt_core.catalog import Catalog, migrate, schema
from ckpt_core.catalog.engine import Database
from ckpt_core.errors import CatalogError, UsageError
from contract.catalog_case import attempt, checkpoint, everything, point, uid

EARLIER = schema.REVISIONS[:-1]


def fill(catalog: Catalog) -> None:
    """Rows in every table that every revision has."""
    for number in range(3):
        entry = checkpoint(number, metrics={"loss": float(number)}, tags=(f"t{number}", "é "))
        catalog.put_checkpoint(entry, [("p", 1), (f"q{number}", 2)])
    catalog.put_checkpoint(checkpoint(9, experiment="Digits", pinned=True), [("p", 1)])
    catalog.forget_checkpoints([uid(1)])
    catalog.add_metrics("digits", attempt(1), [point(1), point(2, float("inf"))])
    catalog.set_experiment_tag("digits", "good")
    catalog.record_check(uid(1), "full", "ok", {"a": [1, "🧪"]})
    for number in range(3):
        catalog.audit("save", uid(number), "ok", {"é": number})


@contextmanager
def interrupted(
    database: Database, at: Callable[[str], bool], error: type[Exception] = CatalogError
) -> Iterator[None]:
    """The power goes at each statement of which `at` says so, and what is done within ends with that."""

    def interrupt(_c: Any, _u: Any, statement: str, _p: Any, _x: Any, _m: bool) -> None:
        if at(" ".join(statement.split())):
            raise ZeroDivisionError("the power went")

    event.listen(database.engine, "before_cursor_execute", interrupt)
    try:
        with pytest.raises(error, match="the power went") as caught:
            yield
    finally:
        event.remove(database.engine, "before_cursor_execute", interrupt)
    assert getattr(caught.value, "kind", "migration") == "migration"


def behind_changes(count: int) -> Callable[[str], bool]:
    """At a change of tables, when so many were made."""
    made = 0

    def at(statement: str) -> bool:
        nonlocal made
        change = statement.startswith(("CREATE", "ALTER", "DROP", "INSERT INTO stores"))
        made += change
        return change and made > count

    return at


def behind(last: str) -> Callable[[str], bool]:
    """At the next statement that changes anything, when one that begins so was made."""
    done = False

    def at(statement: str) -> bool:
        nonlocal done
        now = done and not statement.startswith("SELECT")
        done = statement.startswith(last)
        return now

    return at


class MigrationsContract:
    """Each test begins with an empty database of its own."""

    @pytest.fixture
    def fresh(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def database(self, fresh: str) -> Iterator[Database]:
        opened = Database.open(fresh, timeout=20)
        yield opened
        opened.close()

    def test_the_revisions_together_make_the_tables(self, database: Database) -> None:
        with database.altering() as connection:
            migrate.upgrade(connection)
        with database.reading() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": "catalog_version"})
            assert compare_metadata(context, schema.metadata) == []

    @pytest.mark.parametrize("revision", EARLIER)
    def test_back_and_up_again(self, fresh: str, database: Database, revision: str) -> None:
        with Catalog.open(fresh) as catalog:
            fill(catalog)
            before = everything(catalog)
        migrate.take_back(database, revision)
        with database.reading() as connection:
            assert connection.scalar(text("SELECT version_num FROM catalog_version")) == revision
            assert connection.scalar(text("SELECT count(*) FROM checkpoints")) == 4
            context = MigrationContext.configure(connection, opts={"version_table": "catalog_version"})
            assert compare_metadata(context, schema.metadata) != []
        with Catalog.open(fresh, store="01STORE") as catalog:
            assert everything(catalog) == before
            assert catalog.verify_audit() is None
            catalog.put_checkpoint(checkpoint(5), [("p", 1)])
            catalog.audit("save", uid(5), "ok")
            assert catalog.verify_audit() is None
        with database.reading() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": "catalog_version"})
            assert compare_metadata(context, schema.metadata) == []

    def test_what_an_earlier_revision_cannot_hold_stays(self, fresh: str, database: Database) -> None:
        for store in ("01ONE", "01TWO"):
            with Catalog.open(fresh, store=store) as catalog:
                catalog.put_checkpoint(checkpoint(1), [])
        with pytest.raises(CatalogError, match="several stores share"):
            migrate.take_back(database, "0002")
        for bad in ("0000", "9999", ""):
            with pytest.raises(UsageError):
                migrate.take_back(database, bad)
        with Catalog.open(fresh, store="01TWO") as catalog:
            assert catalog.ids() == {uid(1)}

    @pytest.mark.parametrize("after", [1, 4, 11, 17, 23])
    def test_an_upgrade_that_was_interrupted_is_finished_by_the_next(
        self, fresh: str, database: Database, after: int
    ) -> None:
        with Catalog.open(fresh) as catalog:
            fill(catalog)
            before = everything(catalog)
        migrate.take_back(database, EARLIER[0])
        with interrupted(database, behind_changes(after)):
            migrate.bring_up_to_date(database)
        with Catalog.open(fresh) as catalog:
            assert everything(catalog) == before
            assert catalog.verify_audit() is None

    @pytest.mark.parametrize(
        "last",
        [
            "DROP TABLE listings",
            "CREATE INDEX ix_checkpoints_created",
            "DROP TABLE stores",
            "CREATE TABLE listings",
        ],
    )
    def test_a_way_back_that_was_interrupted_is_finished_by_the_next(
        self, fresh: str, database: Database, last: str
    ) -> None:
        with Catalog.open(fresh) as catalog:
            fill(catalog)
        migrate.take_back(database, "0003")
        with Catalog.open(fresh, store="01STORE") as catalog:
            before = everything(catalog)
        migrate.take_back(database, "0003")
        with interrupted(database, behind(last)):
            migrate.take_back(database, "0002")
        migrate.take_back(database, "0002")
        with database.reading() as connection:
            assert connection.scalar(text("SELECT version_num FROM catalog_version")) == "0002"
        with Catalog.open(fresh, store="01STORE") as catalog:
            assert everything(catalog) == before
            assert catalog.verify_audit() is None

    @pytest.mark.parametrize(
        "last", ["DROP TABLE config_values", "DROP TABLE listings", "CREATE TABLE listings"]
    )
    def test_a_way_back_that_was_interrupted_is_finished_by_whoever_opens_next(
        self, fresh: str, database: Database, last: str
    ) -> None:
        with Catalog.open(fresh, store="01STORE") as catalog:
            fill(catalog)
            before = everything(catalog)
        with interrupted(database, behind(last)):
            migrate.take_back(database, "0002")
        half = migrate.revision(database)
        undone = half in schema.REVISIONS  # the other mark means nothing to an earlier version
        assert half == (schema.HEAD if undone else "on its way to 0002")
        with Catalog.open(fresh, store="01STORE") as catalog:
            assert everything(catalog) == before
            assert catalog.verify_audit() is None
            catalog.set_experiment_tag("digits", "good")
            catalog.audit("save", uid(5), "ok")
            assert catalog.verify_audit() is None
        with database.reading() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": "catalog_version"})
            assert compare_metadata(context, schema.metadata) == []

    @pytest.mark.parametrize("after", [1, 9])
    def test_a_catalog_whose_making_was_interrupted_is_made(
        self, fresh: str, database: Database, after: int
    ) -> None:
        with interrupted(database, behind_changes(after), ZeroDivisionError):
            migrate.bring_up_to_date(database)
        with Catalog.open(fresh) as catalog:
            fill(catalog)
            assert catalog.verify_audit() is None
