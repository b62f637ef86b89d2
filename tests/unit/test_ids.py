"""Identifiers sort by time, never repeat, and carry the moment at which they were made."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from ckpt_core import clock, ids


def test_they_sort_in_the_order_in_which_they_were_made() -> None:
    made = [ids.new_ulid() for _ in range(5000)]
    assert made == sorted(made)
    assert len(set(made)) == 5000
    assert all(ids.is_ulid(each) for each in made)


def test_threads_never_make_the_same() -> None:
    with ThreadPoolExecutor(8) as pool:
        made = [
            each
            for some in pool.map(lambda _: [ids.new_ulid() for _ in range(500)], range(8))
            for each in some
        ]
    assert len(set(made)) == 4000


def test_they_go_on_when_the_clock_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ids.new_ulid()
    early = datetime(2001, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(clock, "now", lambda: early)
    made = [ids.new_ulid() for _ in range(1000)]
    assert [before, *made] == sorted({before, *made})


def test_a_forked_process_counts_along_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    ids.new_ulid()
    monkeypatch.setattr(clock, "now", lambda: datetime(2001, 1, 1, tzinfo=UTC))
    last = ids._last
    ours = ids.new_ulid()
    monkeypatch.setattr(ids, "_last", last)  # what a child inherits
    assert ids.new_ulid() != ours


def test_they_carry_their_moment() -> None:
    moment = clock.now()
    assert abs(ids.time_of(ids.new_ulid()) - moment) < timedelta(seconds=60)
    assert ids.time_of("01ARYZ6S41TSV4RRFFQ69G5FAV") == datetime(2016, 7, 30, 22, 36, 16, 385000, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0" * 25,
        "0" * 27,
        "8" + "0" * 25,
        "O" * 26,
        "01arz3ndektsv4rrffq69g5fav",
        "é" * 26,
        "0" * 25 + "\n",
    ],
)
def test_what_is_no_ulid_is_told(text: str) -> None:
    assert not ids.is_ulid(text)
    with pytest.raises(ValueError, match="not a ULID"):
        ids.time_of(text)


def test_tokens_are_names_that_nobody_else_chose() -> None:
    made = {ids.token() for _ in range(1000)}
    assert len(made) == 1000
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in made)
    assert os.path.basename(ids.token())
