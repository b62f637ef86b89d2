"""Moments go to text and come back the same; no other text is one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_core import clock


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_moment_comes_back(moment: datetime) -> None:
    text = clock.to_text(moment)
    assert clock.from_text(text) == moment
    assert len(text) == 27


def test_text_is_in_utc() -> None:
    there = datetime(2026, 1, 31, 14, 0, tzinfo=timezone(timedelta(hours=2)))
    assert clock.to_text(there) == "2026-01-31T12:00:00.000000Z"
    assert clock.from_text(clock.to_text(there)) == there


@pytest.mark.parametrize(
    "text",
    [
        "", "x" * 27, "2026-01-31T12:00:00Z", "2026-01-31 12:00:00.000000Z", "2026-01-31T12:00:00.000000",
        "2026-01-31T12:00:00.000000+00:00", "2026-02-30T12:00:00.000000Z", "2026-W05-6T12:00:00.000000Z",
        "2026-01-31T12:00:00,000000Z", "2026-01-31T25:00:00.000000Z", "２026-01-31T12:00:00.000000Z",
    ],
)  # fmt: skip
def test_other_text_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        clock.from_text(text)


def test_now_is_now() -> None:
    before = datetime.now(UTC)
    assert before <= clock.now() <= datetime.now(UTC)
    assert clock.monotonic() <= clock.monotonic()
