"""What the catalog's suites share: samples, and the fixtures that a database overrides."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, delete, select, text

from ckpt_core.catalog import Catalog, migrate, schema, stores
from ckpt_core.catalog.engine import Database
from ckpt_core.catalog.scope import STORE
from ckpt_core.model import Attempt, Checkpoint, MetricPoint

SCRIPTS = Path(migrate.__file__).parent / "migrations"
BEGIN = datetime(2026, 1, 31, 12, 0, 0, 123457, tzinfo=UTC)
NAN, INF = math.nan, math.inf


def uid(number: int) -> str:
    """An identifier of the form of a ULID that sorts by `number`."""
    return f"01{number:024d}"


def attempt(number: int, *, lineage: int | None = None, name: str = "") -> Attempt:
    """Attempt `number`; of the lineage that attempt `lineage` began, its own by default."""
    first = number if lineage is None else lineage
    resumed = None if lineage is None else uid(9_000 + number)
    return Attempt(number, f"A{number:03d}{name}", f"L{first:03d}", resumed, None if resumed is None else 7)


def checkpoint(number: int, **changes: Any) -> Checkpoint:
    """A checkpoint that differs in every field from one of another number."""
    made = Checkpoint(
        id=uid(number),
        experiment="digits",
        step=number,
        created_at=BEGIN + timedelta(microseconds=number),
        attempt=attempt(1),
        parent=uid(number - 1) if number else None,
        key=f"checkpoints/digits/{number:012d}-{uid(number)}.json",
        digest=f"{number:064x}",
        logical_bytes=1_000 + number,
        written_bytes=100 + number,
        tensor_count=10 + number,
    )
    return dataclasses.replace(made, **changes)


def point(step: int, value: float = 0.5, *, name: str = "loss", number: int = 1) -> MetricPoint:
    return MetricPoint(name, step, value, BEGIN + timedelta(seconds=step), number)


def same(first: float, second: float) -> bool:
    """Equal, NaN included."""
    return first == second or (math.isnan(first) and math.isnan(second))


# Copies the table that most others refer to: with foreign keys on, that takes their rows along.
SECOND = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "9999", "{head}"

def upgrade():
    with op.batch_alter_table("checkpoints", recreate="always") as table:
        table.add_column(sa.Column("note", sa.String(20), server_default="new"))
    {more}
"""


def scripts(folder: Path, more: str = "pass") -> str:
    """Where there are the package's scripts and one more revision, which makes today's catalogs old ones."""
    copy = folder / "scripts %d"
    if not copy.exists():
        shutil.copytree(SCRIPTS, copy, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / "versions" / "r9999_next.py").write_text(SECOND.format(more=more, head=schema.HEAD))
    return str(copy)


def emptied(url: str) -> str:
    """The URL, and a catalog there as it is when it is new: faster than to make the tables again."""
    database = Database.open(url)
    migrate.bring_up_to_date(database)
    with database.writing() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            if table is not schema.catalog_version:
                connection.execute(table.delete())
        stores.begin(connection)
    database.close()
    return url


def lose(catalog: Catalog, ids: Iterable[str]) -> None:
    """Takes checkpoints out with all that belongs to them, so that the catalog lacks what the store has."""

    def take(connection: Connection) -> None:
        mine = schema.checkpoints.c.store_id == STORE
        rows = select(schema.checkpoints.c.id).where(mine, schema.checkpoints.c.uid.in_(sorted(ids)))
        numbers = connection.scalars(rows).all()
        for table in (schema.checkpoint_packs, schema.checkpoint_metrics, schema.tags):
            connection.execute(delete(table).where(table.c.checkpoint_id.in_(numbers)))
        connection.execute(delete(schema.checkpoints).where(schema.checkpoints.c.id.in_(numbers)))
        # Or else the store is not looked through again.
        connection.execute(delete(schema.listings).where(schema.listings.c.store_id == STORE))

    catalog._database.write(take)


MORE = (*schema.REVISIONS, "9999")
"""The revisions there are in `scripts`."""


def everything(catalog: Catalog) -> list[Any]:
    """What each question finds."""
    return [
        catalog.checkpoints(),
        catalog.checkpoints("digits"),
        catalog.checkpoint(uid(1)),
        catalog.find_prefix("0100"),
        catalog.find_prefix("0100", "digits"),
        catalog.ids(),
        catalog.ids("digits"),
        not catalog.empty(),
        catalog.experiment_names(),
        catalog.count("digits"),
        catalog.steps("digits"),
        catalog.nearest_step("digits", 1),
        catalog.newest("digits"),
        catalog.best("digits", "loss", "min"),
        catalog.packs(uid(1)),
        catalog.packs_by_key(),
        catalog.pinned("digits"),
        catalog.tags("digits"),
        catalog.experiments(),
        catalog.metric_names("digits"),
        catalog.metric_series("digits", "loss"),
        catalog.checks(),
        catalog.pack_checks(),
        catalog.audit_log(),
    ]


class CatalogCase:
    """A catalog to test, and ways around it."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """Where an empty database is."""
        raise NotImplementedError

    @pytest.fixture
    def catalog(self, url: str) -> Iterator[Catalog]:
        with Catalog.open(url) as opened:
            yield opened

    def execute(self, catalog: Catalog, statement: str, **values: Any) -> None:
        """Runs a statement behind the catalog's back."""
        with catalog._database.writing() as connection:
            connection.execute(text(statement), values)

    def count(self, catalog: Catalog, table: str) -> int:
        with catalog._database.reading() as connection:
            return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())
