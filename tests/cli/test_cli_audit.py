"""`ckpt audit`: every change is told, failures too, and tampering with the trail is found."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from ckpt_core.repository.leases import Leases
from ckpt_core.stores import LocalStore
from cli.calls import Call


def events(ckpt: Call, *arguments: str) -> list[tuple[str, str]]:
    entries = ckpt("audit", "--all", "--json", *arguments).data["entries"]
    return [(entry["event"], entry["outcome"]) for entry in reversed(entries)]


def test_every_change_is_told(ckpt: Call, store: Path) -> None:
    before = events(ckpt)
    assert {event for event, _ in before} >= {"save", "tag", "pin"}
    ckpt("tag", "mnist@step=10", "good")
    ckpt("tag", "--delete", "mnist@good")
    ckpt("pin", "mnist@step=10")
    ckpt("unpin", "mnist@step=10")
    ckpt("forget", "mnist@step=10")
    ckpt("undelete", "step=10")
    ckpt("forget", "mnist@step=10")
    with Leases(LocalStore(store), "another machine/1/2/3").take("prune", lock="maintenance"):
        ckpt("prune", "--now")
    ckpt("prune", "--now")
    ckpt("reindex")
    assert events(ckpt)[len(before) :] == [
        ("tag", "done"), ("untag", "done"), ("pin", "done"), ("unpin", "done"), ("forget", "done"),
        ("undelete", "done"), ("forget", "done"), ("prune", "failed"), ("prune", "done"), ("reindex", "done"),
    ]  # fmt: skip
    entry = ckpt("audit", "--event", "prune", "--all", "--json").data["entries"][1]
    assert "another prune" in entry["detail"]["reason"]
    assert "@" in entry["actor"]
    assert ckpt("audit", "--verify").code == 0


def test_a_command_that_only_looks_leaves_no_trace(ckpt: Call, store: Path) -> None:
    before = events(ckpt)
    for command in (("ls",), ("doctor",), ("prune", "--dry-run"), ("undelete",), ("stats",), ("audit",)):
        ckpt(*command)
    assert events(ckpt) == before


def test_for_people(ckpt: Call, store: Path) -> None:
    ckpt("forget", "mnist@step=10")
    answer = ckpt("audit", "-n", "2")
    assert "forget" in answer.out
    assert "step=10" in answer.out
    assert "older entries are not shown" in answer.err
    assert len(ckpt("audit", "-n", "2", "-q").out.split()) == 2
    assert "as it was written" in ckpt("audit", "--verify").err


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE audit_log SET actor = 'nobody@nowhere:1' WHERE id = 3",
        "UPDATE audit_log SET outcome = 'vetoed' WHERE id = 3",
        "UPDATE audit_log SET detail = '{}' WHERE id = 3",
        "UPDATE audit_log SET at = at + 1 WHERE id = 3",
        "DELETE FROM audit_log WHERE id = 3",
        "DELETE FROM audit_log WHERE id >= 3",
        "DELETE FROM audit_log",
        "UPDATE audit_log SET id = CASE id WHEN 3 THEN -4 WHEN 4 THEN -3 END WHERE id IN (3, 4)",
        "UPDATE audit_log SET hash = previous_hash WHERE id = 3",
    ],
)
def test_tampering_is_found(ckpt: Call, store: Path, tampering: str) -> None:
    assert ckpt("audit", "--verify").code == 0
    with sqlite3.connect(store / "catalog.db") as database:
        database.execute(tampering)
        database.execute("UPDATE audit_log SET id = -id WHERE id < 0")
    database.close()
    answer = ckpt("audit", "--verify")
    assert answer.code == 4
    assert "from entry" in answer.err
    data = ckpt("audit", "--verify", "--json").data
    assert (data["verified"], data["broken_from"] in (1, 3)) == (False, True)
    assert "audit trail is not as it was written" in ckpt("doctor").out
