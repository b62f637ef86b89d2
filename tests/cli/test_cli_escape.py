"""What a terminal is shown: escaped names, tables that fit, sizes and times in words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_core import clock
from ckpt_core.cli import words
from ckpt_core.cli.escape import escape, width_of
from ckpt_core.cli.output import jsonable
from ckpt_core.cli.records import short_ids
from ckpt_core.cli.tables import Column, Span, layout


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model/layer.0/weight", "model/layer.0/weight"),
        ("\x1b[2J\x07", "\\u001b[2J\\u0007"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("line\nbreak\ttab\r", "line\\u000abreak\\u0009tab\\u000d"),
        ("\x9b31m", "\\u009b31m"),
        ("tag\U000e0041", "tag\\U000e0041"),
        ("\ud800", "\\ud800"),
        ("日本語 é ñ", "日本語 é ñ"),
        ("[bold]not markup[/bold]", "[bold]not markup[/bold]"),
    ],
)
def test_hidden_characters_are_shown(text: str, shown: str) -> None:
    assert escape(text) == shown


@given(st.text())
def test_nothing_escaped_can_act_and_twice_is_once(text: str) -> None:
    shown = escape(text)
    assert shown.isprintable()
    assert escape(shown) == shown


def test_wide_characters_take_two_columns() -> None:
    assert width_of("日本") == 4
    assert width_of("e\u0301") == 1


def lines(columns: list[Column], rows: list[list[str | Span]], width: int | None) -> list[str]:
    table = layout(columns, rows, width)
    return [
        "".join(part.text if isinstance(part, Span) else part for part in line).rstrip() for line in table
    ]


def test_a_table_is_as_wide_as_it_must_be() -> None:
    shown = lines([Column("NAME"), Column("SIZE", right=True)], [["a", "1 B"], ["bcd", "100 B"]], None)
    assert shown == ["NAME   SIZE", "a       1 B", "bcd   100 B"]


def test_a_table_that_is_too_wide_is_cut_and_loses_what_matters_least() -> None:
    columns = [Column("NAME", cut=True), Column("AT", drop=2), Column("MORE", drop=1)]
    row: list[str | Span] = ["n" * 40, "a" * 20, "m" * 20]
    assert lines(columns, [row], None)[1] == "n" * 40 + "  " + "a" * 20 + "  " + "m" * 20
    assert lines(columns, [row], 50) == ["NAME" + " " * 26 + "MORE", "n" * 27 + "…  " + "m" * 20]
    assert lines(columns, [row], 30) == ["NAME", "n" * 29 + "…"]


def test_a_cell_with_a_line_break_stays_on_its_line() -> None:
    assert lines([Column("A"), Column("B")], [["x\ny", "z"]], None)[1] == "x\\u000ay  z"


@given(
    st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=1, max_size=4),
    st.integers(20, 90),
)
def test_a_table_of_any_text_fits(rows: list[tuple[str, str]], width: int) -> None:
    shown = lines([Column("ONE", cut=True), Column("TWO", cut=True)], [list(row) for row in rows], width)
    assert len(shown) == len(rows) + 1
    assert all(width_of(line) <= width for line in shown)


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (102_400, "100 KiB"),
     (1024**2 - 1, "1.0 MiB"), (5 * 1024**3, "5.0 GiB"), (3 * 1024**6, "3.0 EiB")],
)  # fmt: skip
def test_sizes(count: int, shown: str) -> None:
    assert words.size(count) == shown


@pytest.mark.parametrize(
    ("passed", "shown"),
    [(1, "now"), (59, "59 s ago"), (60, "1 min ago"), (7200, "2 h ago"), (3 * 86400, "3 d ago"),
     (65 * 86400, "2 mo ago"), (800 * 86400, "2 y ago"), (-300, "in 5 min")],
)  # fmt: skip
def test_times(passed: int, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    monkeypatch.setattr(clock, "now", lambda: now)
    assert words.ago(now - timedelta(seconds=passed)) == shown


def test_a_moment_is_told_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    monkeypatch.setattr(clock, "now", lambda: now)
    assert words.when(now - timedelta(hours=3)) == "3 h ago (2026-01-31T09:00:00Z)"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0%"), (1e-6, "<0.01%"), (0.125, "12.5%"), (1.0, "100%"), (0.999999, ">99.99%")],
)
def test_shares_never_pretend(value: float, shown: str) -> None:
    assert words.share(value) == shown


def test_ids_are_cut_where_they_still_differ() -> None:
    one, two, three = "01M85A9ZYTAV66SYQTYJ3CJ1DP", "01M85A9ZYTAV7", "01M85BVDZTZQ5TJV1EHEFH68TF"
    assert set(short_ids([one, three]).values()) == {"01M85A9ZYT", "01M85BVDZT"}
    assert set(short_ids([three, two, one]).values()) == {one[:13], two[:13], three[:13]}


def test_what_json_lacks_becomes_text() -> None:
    value = {"nan": float("nan"), 1: (float("inf"), b"\x00"), "set": {2, 1}}
    assert jsonable(value) == {"nan": "nan", "1": ["inf", {"$bytes": "AA=="}], "set": [1, 2]}
