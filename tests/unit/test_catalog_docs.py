"""docs/catalog.md against the catalog: its SQL runs, and nothing is left out."""

from __future__ import annotations

import ast
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ckpt_core.catalog import Catalog, dialect, schema
from contract.catalog_case import attempt, checkpoint, point, uid

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "catalog.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"([^\n]+):\n\n```sql\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    path = tmp_path / "catalog.db"
    with Catalog.open(f"sqlite:///{path}") as catalog:
        for number, value in enumerate((0.5, 0.25, float("nan"))):
            mine = attempt(1) if number < 2 else attempt(2, lineage=1)
            entry = checkpoint(number, attempt=mine, metrics={"val_loss": value, "accuracy": 0.75})
            catalog.put_checkpoint(entry, [("shared", 10), (f"own{number}", number + 1)])
        catalog.set_tag("digits", "good", uid(1))
        catalog.add_metrics("digits", attempt(1), [point(1, 4.0), point(2, 3.0), point(3, 2.0)])
        catalog.add_metrics("digits", attempt(2, lineage=1), [point(3, 1.0, number=2)])
        catalog.record_check(uid(1), "full", "ok")
        catalog.audit("save", uid(1), "ok", actor="me@here:1")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as opened:
        yield opened


def test_every_block_of_sql_is_an_example() -> None:
    assert PAGE.count("```sql") == len(EXAMPLES) == 9


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_runs_and_finds_something(connection: sqlite3.Connection, title: str) -> None:
    assert connection.execute(EXAMPLES[title]).fetchall()


def test_examples_say_what_they_promise(connection: sqlite3.Connection) -> None:
    def found(beginning: str) -> list[tuple[object, ...]]:
        (sql,) = (sql for title, sql in EXAMPLES.items() if title.startswith(beginning))
        return connection.execute(sql).fetchall()

    assert found("The newest")[0] == (uid(2), 2, "2026-01-31 12:00:00", 102)
    assert found("The best") == [(uid(1), 1, 0.25), (uid(0), 0, 0.5)]
    assert found("Two metrics") == [(uid(0), 0, 0.5, 0.75), (uid(1), 1, 0.25, 0.75), (uid(2), 2, "nan", 0.75)]
    assert found("A metric series") == [(1, 4.0, None, 1), (2, 3.0, None, 1), (3, 1.0, None, 2)]
    assert found("What came of") == [("digits", 1, "L001", None, 2, 1), ("digits", 2, "L001", 7, 1, 2)]
    assert found("Tags and pins") == [("digits", "good", uid(1), 1, 0)]
    assert found("Bytes that") == [(uid(2), 2, 3), (uid(1), 1, 2), (uid(0), 0, 1)]
    assert [row[0] for row in found("Checkpoints that were")][-1] == uid(1)
    assert found("What was changed")[0][2:] == ("me@here:1", "save", uid(1), "ok")


def test_every_table_is_told_of() -> None:
    assert [name for name in schema.metadata.tables if f"| `{name}` |" not in PAGE] == []


def kinds_in(source: str) -> set[str]:
    """The kinds that `CatalogError(kind=...)` and `database.error(...)` are called with."""
    found = set()
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        given = call.args[:1] if name == "error" else []
        given += [word.value for word in call.keywords if name == "CatalogError" and word.arg == "kind"]
        found |= {str(value.value) for value in given if isinstance(value, ast.Constant)}
    return found


def test_every_kind_of_error_is_told_of() -> None:
    raised = set()
    for path in Path(dialect.__file__).parent.glob("*.py"):
        raised |= kinds_in(path.read_text("utf-8"))
    for table in (dialect._SQLITE_KINDS, dialect._POSTGRESQL_KINDS, dialect._MYSQL_KINDS):
        raised |= set(table.values())
    assert {"locked", "foreign", "closed", "full", "backup", "migration", "read-only"} <= raised
    told = set(re.findall(r"^\| `([a-z-]+)` \|", PAGE[: PAGE.index("## Tables")], re.MULTILINE))
    assert told == raised | {"database", "unavailable"}
