"""The catalog's suite, part five: on a server with thousands of rows, a question reads those that it is about.

What counts is what the server has really read. Each statement is made twice: measured, which is undone, and then as it
was meant. SQLite counts no rows; of its plans tells `tests/unit/test_catalog_plans.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event, insert, text

from ckpt_core.catalog import Catalog, schema
from contract.catalog_case import BEGIN, attempt, checkpoint, point, uid

Question = Callable[[Catalog], Any]

MANY = 1_000
"""Checkpoints, entries of the audit trail, checks; there are as many points of metrics."""
FEW = 200
"""Rows read for an answer of at most twenty, or of a series of fifty, its tags and what it belongs to."""

QUESTIONS: dict[str, Question] = {
    "latest": lambda c: c.newest("digits"),
    "best": lambda c: c.best("digits", "loss", "min", "L001"),
    "best 5 of all": lambda c: c.best("digits", "loss", "max", limit=5),
    "a page of checkpoints": lambda c: c.checkpoints("digits", newest_first=True, limit=20),
    "a page of all": lambda c: c.checkpoints(newest_first=True, limit=20),
    "a page of a lineage": lambda c: c.checkpoints("digits", lineage="L001", newest_first=True, limit=20),
    "a step": lambda c: c.checkpoints("digits", step=500, newest_first=True, limit=1),
    "the nearest step": lambda c: c.nearest_step("digits", 234),
    "a tag": lambda c: c.checkpoints("digits", tag="t1500"),
    "an id": lambda c: c.checkpoint(uid(500)),
    "a prefix": lambda c: c.find_prefix(uid(500)[:-1]),
    "a prefix in one": lambda c: c.find_prefix(uid(500)[:-1], "digits"),
    "packs": lambda c: c.packs(uid(500)),
    "experiments with checkpoints": lambda c: c.experiment_names(),
    "names of metrics": lambda c: c.metric_names("digits", logged=True),
    "a series": lambda c: c.metric_series("digits", "m7"),
    "a series of a lineage": lambda c: c.metric_series("digits", "m7", "L001"),
    "a page of the audit trail": lambda c: c.audit_log(limit=20),
    "checks of one": lambda c: c.checks(uid(500), limit=20),
    "a page of checks": lambda c: c.checks(limit=20),
    "put": lambda c: c.put_checkpoint(checkpoint(MANY, metrics={"loss": 0.5}, tags=("x",)), [("q", 1)]),
    "put again": lambda c: c.put_checkpoint(checkpoint(400, metrics={"loss": 0.5}, tags=("x",)), [("q", 1)]),
    "set a tag": lambda c: c.set_tag("digits", "x", uid(600)),
    "a pin": lambda c: c.set_pinned(uid(500), True),
    "forget": lambda c: c.forget_checkpoints([uid(501)]),
    "the last entry about hooks": lambda c: c.audit_log(1, ["hooks"]),
    "log": lambda c: c.add_metrics("digits", attempt(1), [point(MANY)]),
    "check": lambda c: c.record_check(uid(500), "full", "ok"),
    "audit": lambda c: c.audit("save", uid(500), "ok"),
}


def fill(catalog: Catalog) -> None:
    def made(number: int) -> Any:
        entry = checkpoint(number, metrics={"loss": number % 97 / 97}, tags=(f"t{number}",))
        return entry, [(f"p{number}", 1)]

    catalog.put_checkpoints(made(number) for number in range(MANY))
    catalog.put_checkpoint(checkpoint(MANY + 1, experiment="other"), [("p1", 1)])
    points = [point(step, name=f"m{name}") for name in range(MANY // 50) for step in range(50)]
    catalog.add_metrics("digits", attempt(1), points)
    catalog.audit("save", uid(1), "ok")
    with catalog._database.writing() as connection:
        store = connection.scalar(text("SELECT id FROM stores"))
        # A tag is small, so that it takes many before an index is worth its while.
        tags = connection.execute(schema.tags.select().limit(MANY // 4)).mappings().all()
        more = [dict(tag) | {"name": f"{tag['name']} {number}"} for tag in tags for number in range(20)]
        connection.execute(insert(schema.tags), more)
        own = {"store_id": store, "at": BEGIN, "outcome": "ok"}
        entry = own | {
            "actor": "a",
            "event": "save",
            "subject": "x",
            "detail": "{}",
            "previous_hash": "",
            "hash": "",
        }
        connection.execute(insert(schema.audit_log), [entry | {"id": 2 + number} for number in range(MANY)])
        connection.execute(schema.audit_head.update().values(last_id=MANY + 1))
        check = own | {"kind": "full", "detail": {}, "bytes_checked": 1}
        connection.execute(
            insert(schema.integrity_checks),
            [check | {"checkpoint_uid": uid(number)} for number in range(MANY)],
        )


class PlansContract:
    """One catalog, which no question changes enough to matter to the next."""

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls) -> str:
        """The URL of an empty database."""
        raise NotImplementedError

    @staticmethod
    def analyse(cursor: Any, tables: list[str]) -> None:
        """Has the server look at what there is, as it does by itself from time to time."""
        raise NotImplementedError

    @staticmethod
    def rows_read(cursor: Any, statement: str, values: Any) -> float:
        """Makes a statement, and tells how many rows the server read for it."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def filled(cls, place: str) -> Iterator[Catalog]:
        with Catalog.open(place) as catalog:
            fill(catalog)
            with catalog._database.writing() as connection:
                driver: Any = connection.connection.dbapi_connection
                with driver.cursor() as cursor:
                    cls.analyse(cursor, sorted(schema.metadata.tables))
            yield catalog

    def measured(self, catalog: Catalog, question: Question) -> list[tuple[float, str]]:
        found: list[tuple[float, str]] = []

        def listen(_c: Any, cursor: Any, statement: str, values: Any, _x: Any, many: bool) -> None:
            with cursor.connection.cursor() as own:
                own.execute("SAVEPOINT measured")
                found.append((self.rows_read(own, statement, values[0] if many else values), statement))
                own.execute("ROLLBACK TO SAVEPOINT measured")

        event.listen(catalog._database.engine, "before_cursor_execute", listen)
        try:
            question(catalog)
        finally:
            event.remove(catalog._database.engine, "before_cursor_execute", listen)
        return found

    @pytest.mark.parametrize("name", QUESTIONS)
    def test_a_question_reads_what_it_is_about(self, filled: Catalog, name: str) -> None:
        found = self.measured(filled, QUESTIONS[name])
        assert found
        assert sum(rows for rows, _ in found) <= FEW, found

    def test_what_reads_all_is_told(self, filled: Catalog) -> None:
        for question in (lambda c: c.experiments(), lambda c: c.ids(), lambda c: c.packs_by_key()):
            assert sum(rows for rows, _ in self.measured(filled, question)) >= MANY


class PostgreSQLPlans(PlansContract):
    @staticmethod
    def analyse(cursor: Any, tables: list[str]) -> None:
        cursor.execute("ANALYZE")

    @staticmethod
    def rows_read(cursor: Any, statement: str, values: Any) -> float:
        cursor.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}", values)
        ((plans,),) = cursor.fetchall()
        return sum(_of_a_plan(plan["Plan"]) for plan in plans)


def _of_a_plan(node: dict[str, Any]) -> float:
    rows = 0.0
    if "Relation Name" in node or "Index Name" in node:
        kept, dropped = node["Actual Rows"], node.get("Rows Removed by Filter", 0)
        rows = (kept + dropped + node.get("Rows Removed by Index Recheck", 0)) * node["Actual Loops"]
    return rows + sum(map(_of_a_plan, node.get("Plans", ())))


class MySQLPlans(PlansContract):
    @staticmethod
    def analyse(cursor: Any, tables: list[str]) -> None:
        cursor.execute(f"ANALYZE TABLE {', '.join(tables)}")
        cursor.fetchall()

    @staticmethod
    def rows_read(cursor: Any, statement: str, values: Any) -> float:
        before = _count(cursor)
        cursor.execute(statement, values)
        cursor.fetchall()
        return _count(cursor) - before


def _count(cursor: Any) -> int:
    """The rows that the session has read. To ask adds a few dozen of the server's own."""
    cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
    return sum(int(count) for _, count in cursor.fetchall())
