"""The graph of `ckpt log`, drawn from checkpoints that were never saved."""

from __future__ import annotations

from datetime import UTC, datetime

from ckpt_core.cli.history import Link, draw, links
from ckpt_core.model import Attempt, Checkpoint


def checkpoint(name: str, attempt: Attempt, step: int, parent: str | None = None) -> Checkpoint:
    moment = datetime(2026, 1, 31, tzinfo=UTC)
    return Checkpoint(name, "x", step, moment, attempt, parent, f"k/{name}", "d", 1, 1, 1)


def attempt(number: int, lineage: int = 1, resumed: tuple[str, int] | None = None) -> Attempt:
    return Attempt(number, f"a{number}", f"a{lineage}", *(resumed or (None, None)))


def drawing(*checkpoints: Checkpoint) -> list[str]:
    rows = []
    for row in draw(checkpoints):
        told = row.checkpoint.id if row.checkpoint else f"({row.attempt.number})" if row.attempt else ""
        rows.append(f"{row.graph} {told}".rstrip())
    return rows


def test_a_straight_line() -> None:
    one = attempt(1)
    assert drawing(checkpoint("A", one, 1), checkpoint("B", one, 2, "A")) == ["* B", "* A", " (1)"]


def test_two_beginnings_do_not_touch() -> None:
    a, b = checkpoint("A", attempt(1), 1), checkpoint("B", attempt(2, 2), 1)
    assert drawing(a, b) == ["* B", " (2)", "* A", " (1)"]


def test_a_resume_in_the_middle_is_a_branch() -> None:
    one, two = attempt(1), attempt(2, 1, ("A", 1))
    found = drawing(
        checkpoint("A", one, 1),
        checkpoint("B", one, 2, "A"),
        checkpoint("C", two, 2, "A"),
        checkpoint("D", two, 3, "C"),
    )
    assert found == ["* D", "* C", "| (2)", "| * B", "|/", "* A", " (1)"]


def test_three_branches_from_one() -> None:
    found = drawing(
        checkpoint("A", attempt(1), 1),
        checkpoint("B", attempt(2, 1, ("A", 1)), 2, "A"),
        checkpoint("C", attempt(3, 1, ("A", 1)), 2, "A"),
        checkpoint("D", attempt(4, 1, ("A", 1)), 2, "A"),
    )
    assert found == ["* D", "| (4)", "| * C", "| | (3)", "| | * B", "| | | (2)", "|_|/", "|/", "* A", " (1)"]


def test_a_lineage_goes_on_beside_another() -> None:
    found = drawing(
        checkpoint("A", attempt(1), 1),
        checkpoint("B", attempt(2, 2), 1),
        checkpoint("C", attempt(3, 1, ("A", 1)), 2, "A"),
    )
    assert found == ["* C", "| (3)", "| * B", "| (2)", "* A", " (1)"]


def test_forgotten_checkpoints_are_bridged() -> None:
    one, two = attempt(1), attempt(2, 1, ("gone", 3))
    known = [checkpoint("A", one, 1), checkpoint("C", one, 3, "lost"), checkpoint("D", two, 5, "gone")]
    assert drawing(*known) == ["* D", ": (2)", "* C", "* A", " (1)"]
    found = links(known)
    assert found["A"] is None
    assert (found["C"].to, found["C"].direct) == ("A", False)
    assert (found["D"].to, found["D"].direct) == ("C", False)


def test_a_resume_is_not_joined_to_what_came_after_it() -> None:
    one, two = attempt(1), attempt(2, 1, ("gone", 3))
    known = [checkpoint("A", one, 1), checkpoint("E", one, 9, "lost"), checkpoint("D", two, 5, "gone")]
    assert links(known)["D"] == Link("A", False)


def test_a_resume_from_before_all_that_stands_begins_a_line() -> None:
    known = [checkpoint("D", attempt(2, 1, ("gone", 3)), 5, "gone")]
    assert links(known) == {"D": None}
    assert drawing(*known) == ["* D", " (2)"]
