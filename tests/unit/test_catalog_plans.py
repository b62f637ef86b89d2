"""Which index answers which question. The planner is asked about what the catalog really sends."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from ckpt_core.catalog import Catalog
from contract.catalog_case import attempt, checkpoint, point, uid

Question = Callable[[Catalog], Any]

# The question, the index that must find its rows of `checkpoints`, and by how many columns.
ORDERED: dict[str, tuple[Question, str]] = {
    "newest": (lambda c: c.newest("digits"), "ix_checkpoints_order (experiment_id=? AND status=?)"),
    "last 20": (
        lambda c: c.checkpoints("digits", newest_first=True, limit=20),
        "ix_checkpoints_order (experiment_id=? AND status=?)",
    ),
    "last 20 of all": (
        lambda c: c.checkpoints(newest_first=True, limit=20),
        "ix_checkpoints_created (status=? AND store_id=?)",
    ),
    "last 20 of a lineage": (
        lambda c: c.checkpoints("digits", lineage="L001", newest_first=True, limit=20),
        "ix_checkpoints_lineage (experiment_id=? AND status=? AND lineage_uid=?)",
    ),
    "a step": (
        lambda c: c.checkpoints("digits", step=3, newest_first=True, limit=1),
        "ix_checkpoints_step (experiment_id=? AND status=? AND step=?)",
    ),
    "a step of a lineage": (
        lambda c: c.checkpoints("digits", step=3, lineage="L001"),
        "ix_checkpoints_step (experiment_id=? AND status=? AND step=?)",
    ),
    "a prefix": (
        lambda c: c.find_prefix("0100"),
        "sqlite_autoindex_checkpoints_1 (store_id=? AND uid>? AND uid<?)",
    ),
    "a prefix in one": (
        lambda c: c.find_prefix("0100", "digits"),
        "sqlite_autoindex_checkpoints_1 (store_id=? AND uid>? AND uid<?)",
    ),
    "an id": (lambda c: c.checkpoint(uid(1)), "sqlite_autoindex_checkpoints_1 (store_id=? AND uid=?)"),
    "pins": (lambda c: c.pinned("digits"), "ix_checkpoints_pinned (experiment_id=? AND pinned=?)"),
    "a tag": (lambda c: c.checkpoints("digits", tag="t1"), "INTEGER PRIMARY KEY (rowid=?)"),
    "best": (lambda c: c.best("digits", "loss", "min", "L001"), "INTEGER PRIMARY KEY (rowid=?)"),
    "best 5": (lambda c: c.best("digits", "loss", "max", "L001", limit=5), "INTEGER PRIMARY KEY (rowid=?)"),
    "the step below and above": (
        lambda c: c.nearest_step("digits", 3),
        "ix_checkpoints_step (experiment_id=? AND status=? AND step",
    ),
    "best of all": (lambda c: c.best("digits", "loss", "max", limit=5), "INTEGER PRIMARY KEY (rowid=?)"),
}
OTHERS: dict[str, Question] = {
    "a pin": lambda c: c.set_pinned(uid(1), True),
    "all of one": lambda c: c.checkpoints("digits"),
    "all of one, forgotten too": lambda c: c.checkpoints("digits", include_forgotten=True),
    "ids": lambda c: c.ids("digits"),
    "how many": lambda c: c.count("digits"),
    "ids and steps": lambda c: c.steps("digits"),
    "experiments with checkpoints": lambda c: c.experiment_names(),
    "what a folder looked like": lambda c: c.listing_word("digits"),
    "tags": lambda c: c.tags("digits"),
    "packs": lambda c: c.packs(uid(1)),
    "set a tag": lambda c: c.set_tag("digits", "t", uid(1)),
    "forget": lambda c: c.forget_checkpoints([uid(2)]),
    "forget many": lambda c: c.forget_checkpoints(uid(number) for number in range(400)),
    "put many": lambda c: c.put_checkpoints((checkpoint(number), [("q", 1)]) for number in range(400)),
    "best many": lambda c: c.best("digits", "loss", "min", limit=400),
    "put": lambda c: c.put_checkpoint(checkpoint(1, tags=("x",), metrics={"loss": 1.0}), [("q", 1)]),
    "series": lambda c: c.metric_series("digits", "loss"),
    "series of a lineage": lambda c: c.metric_series("digits", "loss", "L001"),
    "log": lambda c: c.add_metrics("digits", attempt(1), [point(1)]),
    "checks": lambda c: c.checks(uid(1), limit=3),
    "a page of checks": lambda c: c.checks(limit=3),
    "a page of the audit trail": lambda c: c.audit_log(limit=3),
    "how long the audit trail is": lambda c: c.audit_count(),
    "audit": lambda c: c.audit("save", "x", "ok"),
}
LARGE = (
    *("checkpoints", "checkpoint_metrics", "checkpoint_packs", "experiment_metrics", "packs", "tags"),
    *("audit_log", "integrity_checks"),
)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.db") as opened:
        for number in range(9):
            entry = checkpoint(number, metrics={"loss": number % 4}, tags=(f"t{number}",))
            opened.put_checkpoint(entry, [("p", 1)])
        opened.add_metrics("digits", attempt(1), [point(1)])
        yield opened


def plan(catalog: Catalog, question: Question) -> list[str]:
    """What the planner says of each statement that answers the question, line by line."""
    sent: list[tuple[str, Any]] = []

    def listen(_c: Any, _u: Any, statement: str, values: Any, _x: Any, many: bool) -> None:
        sent.append((statement, values[0] if many else values))

    event.listen(Engine, "before_cursor_execute", listen)
    try:
        question(catalog)
    finally:
        event.remove(Engine, "before_cursor_execute", listen)
    path = catalog._database.path
    assert path is not None
    lines = []
    with closing(sqlite3.connect(path)) as connection:
        for statement, values in sent:
            if not statement.startswith("BEGIN"):
                rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)
                lines += [str(row[3]) for row in rows]
    assert lines
    return lines


def scans(lines: list[str]) -> list[str]:
    words = [line.split() for line in lines]
    return [" ".join(w) for w in words if w[0] == "SCAN" and set(LARGE) & set(w[1:3])]


@pytest.mark.parametrize("name", ORDERED)
def test_a_question_walks_its_index(catalog: Catalog, name: str) -> None:
    question, index = ORDERED[name]
    lines = plan(catalog, question)
    found = [line for line in lines if line.startswith("SEARCH checkpoints USING")]
    assert found
    assert all(index in line for line in found), found
    assert scans(lines) == []


@pytest.mark.parametrize(
    "question",
    [
        lambda c: c.audit_log(1, ["hooks"]),
        lambda c: c.audit_log(1, ["hooks"], "digits"),
        lambda c: c.audit_log(9, ["hook", "hooks"]),
        lambda c: c.audit_count(["hook", "hooks"]),
    ],
)
def test_events_of_the_audit_trail_walk_their_index(catalog: Catalog, question: Question) -> None:
    lines = [line for line in plan(catalog, question) if not line.startswith("SEARCH stores")]
    assert lines
    for line in lines:
        assert line.startswith("SEARCH audit_log USING "), lines
        assert "INDEX ix_audit_log_event (store_id=? AND event=?)" in line, lines


@pytest.mark.parametrize("name", ORDERED)
def test_a_question_sorts_nothing_but_a_few_tags(catalog: Catalog, name: str) -> None:
    lines = plan(catalog, ORDERED[name][0])
    sorting = [number for number, line in enumerate(lines) if "TEMP B-TREE" in line]
    assert all(lines[number - 1].startswith("SEARCH tags") for number in sorting), lines


@pytest.mark.parametrize("name", [name for name in ORDERED if name.startswith("best")])
def test_best_walks_the_index_of_values(catalog: Catalog, name: str) -> None:
    found = [line for line in plan(catalog, ORDERED[name][0]) if "checkpoint_metrics" in line]
    assert len(found) >= 2
    index = "ix_checkpoint_metrics_best_of_all" if "of all" in name else "ix_checkpoint_metrics_best"
    assert all(f"COVERING INDEX {index} (metric_id=?" in line for line in found), found


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_reads_a_whole_table(catalog: Catalog, name: str) -> None:
    lines = plan(catalog, OTHERS[name])
    assert scans(lines) == []
    if name != "all of one, forgotten too":
        # Its first column has but two values: for any other question it is a scan by another name.
        assert not [line for line in lines if "ix_checkpoints_created" in line]


def test_a_scan_is_recognised(catalog: Catalog) -> None:
    lines = plan(catalog, lambda c: c.experiments())
    assert scans([*lines, "SCAN checkpoints", "SCAN checkpoints USING INDEX ix_checkpoints_created"])
    assert scans(["SCAN TABLE checkpoints"])
    assert scans(["SCAN experiments"]) == []
