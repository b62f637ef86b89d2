"""What each retention policy keeps and why, and how `decide` unites them."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime, timedelta, timezone

import pytest

from ckpt_core.errors import UsageError
from ckpt_core.model import Attempt, Checkpoint
from ckpt_core.policies import (
    KeepAll,
    KeepBest,
    KeepEvery,
    KeepLast,
    KeepSpaced,
    KeepTagged,
    KeepWithinBytes,
    RetentionContext,
    decide,
    parse_bytes,
)

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)  # a Saturday
CONTEXT = RetentionContext(NOW)
LOSS = RetentionContext(NOW, metric="val_loss")


def made(step, *, at=None, attempt=1, id_=None, logical=100, written=10, **facts):
    return Checkpoint(
        id=id_ or f"C{step}",
        experiment="digits",
        step=step,
        created_at=at or NOW + timedelta(minutes=step),
        attempt=Attempt(attempt, f"A{attempt}", "A1"),
        parent=None,
        key="key",
        digest="digest",
        logical_bytes=logical,
        written_bytes=written,
        tensor_count=1,
        **facts,
    )


def steps(*numbers):
    return [made(number) for number in numbers]


def kept(policy, checkpoints, context=CONTEXT):
    return sorted(policy.keep(checkpoints, context))


def reasons(decisions):
    return {decision.checkpoint.id: (decision.keep, decision.reasons) for decision in decisions}


# Each policy


def test_keep_all():
    assert KeepAll().keep(steps(1, 2), CONTEXT) == {"C1": "all", "C2": "all"}


def test_keep_last():
    assert KeepLast(2).keep(steps(3, 1, 2), CONTEXT) == {"C2": "last 2", "C3": "last 2"}
    assert kept(KeepLast(5), steps(1, 2)) == ["C1", "C2"]
    assert kept(KeepLast(5), []) == []


def test_last_is_by_attempt_before_step():
    resumed_from_2 = [made(3, attempt=2, id_="new 3"), *steps(1, 2, 3, 4)]
    assert kept(KeepLast(2), resumed_from_2) == ["C4", "new 3"]


def losses(*values):
    return [made(step, metrics={"val_loss": value}) for step, value in enumerate(values)]


def test_keep_best():
    assert KeepBest(2).keep(losses(0.5, 0.2, 0.9, 0.3), LOSS) == {
        "C1": "best 2 by val_loss (min)",
        "C3": "best 2 by val_loss (min)",
    }


def test_best_by_the_largest():
    assert kept(KeepBest(1), losses(0.5, 0.9), RetentionContext(NOW, "val_loss", "max")) == ["C1"]
    assert kept(KeepBest(1, "val_loss", "max"), losses(0.5, 0.9), CONTEXT) == ["C1"]
    assert kept(KeepBest(1, mode="max"), losses(0.5, 0.9), LOSS) == ["C1"]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_of_equally_good_ones_the_older_is_kept(mode):
    equal = losses(0.5, 0.5, 0.5)
    assert kept(KeepBest(2, mode=mode), [equal[2], equal[0], equal[1]], LOSS) == ["C0", "C1"]


def test_without_a_value_there_is_no_rank():
    assert kept(KeepBest(3), [*losses(math.nan, 0.5), made(7), made(8, metrics={"other": 1})], LOSS) == ["C1"]
    assert kept(KeepBest(3), steps(1, 2), LOSS) == []


def test_infinities_have_a_rank():
    assert kept(KeepBest(1), losses(math.inf, 0.5), LOSS) == ["C1"]
    assert kept(KeepBest(1), losses(math.inf), LOSS) == ["C0"]


def test_best_by_another_metric_needs_to_know_which_way():
    checkpoints = [made(step, metrics={"accuracy": step / 10}) for step in (1, 2)]
    assert kept(KeepBest(1, "accuracy", "max"), checkpoints, LOSS) == ["C2"]
    assert kept(KeepBest(1, "val_loss"), losses(1.0, 0.5), LOSS) == ["C1"]
    with pytest.raises(UsageError, match=r"'accuracy'.*mode=") as caught:
        KeepBest(1, "accuracy").keep(checkpoints, LOSS)
    assert caught.value.metric == "accuracy"


def test_best_without_any_metric_is_refused_before_there_are_checkpoints():
    with pytest.raises(UsageError, match="no metric to rank by"):
        decide([KeepBest(1)], [], CONTEXT)


def test_keep_every_so_many_steps():
    policy = KeepEvery(steps=100)
    assert policy.keep(steps(0, 50, 100, 150, 300), CONTEXT) == dict.fromkeys(
        ["C0", "C100", "C300"], "every 100 steps"
    )
    assert kept(KeepEvery(steps=1), steps(3, 4)) == ["C3", "C4"]


def test_a_multiple_saved_twice_is_kept_twice():
    twice = [made(100), made(100, attempt=2, id_="again")]
    assert kept(KeepEvery(steps=100), twice) == ["C100", "again"]


def test_keep_the_first_of_every_so_many_minutes():
    minutes = [0, 1, 29, 30, 59, 61, 200]
    checkpoints = [made(minute, at=NOW + timedelta(minutes=minute)) for minute in minutes]
    assert KeepEvery(minutes=30).keep(checkpoints, CONTEXT) == dict.fromkeys(
        ["C0", "C30", "C61", "C200"], "every 30 minutes"
    )


def test_the_first_by_time_is_kept_also_if_the_order_is_another():
    late_start = [made(1, at=NOW + timedelta(minutes=5)), made(2, at=NOW + timedelta(minutes=1))]
    assert kept(KeepEvery(minutes=60), late_start) == ["C2"]


def test_half_minutes():
    checkpoints = [made(second, at=NOW + timedelta(seconds=second)) for second in (0, 29, 30, 60)]
    assert kept(KeepEvery(minutes=0.5), checkpoints) == ["C0", "C30", "C60"]
    assert KeepEvery(minutes=0.5).describe(CONTEXT) == "every 0.5 minutes"
    assert len(kept(KeepEvery(minutes=1e-320), checkpoints)) == len(checkpoints)


def test_words_for_one_and_for_many():
    assert KeepEvery(steps=1).describe(CONTEXT) == "every step"
    assert KeepEvery(steps=1_000_000).describe(CONTEXT) == "every 1000000 steps"
    assert KeepEvery(minutes=60.0).describe(CONTEXT) == "every 60 minutes"


def test_keep_tagged():
    checkpoints = [made(1, tags=("release-1", "good")), made(2, tags=("draft",)), made(3)]
    assert KeepTagged().keep(checkpoints, CONTEXT) == {"C1": "tagged good, release-1", "C2": "tagged draft"}
    assert KeepTagged("release-*").keep(checkpoints, CONTEXT) == {"C1": "tagged release-1"}
    assert KeepTagged("RELEASE-*").keep(checkpoints, CONTEXT) == {}
    assert KeepTagged("a").keep([made(1, tags=("A",))], CONTEXT) == {}
    assert [KeepTagged().describe(CONTEXT), KeepTagged("a*").describe(CONTEXT)] == ["tagged", "tagged a*"]


def hours(*numbers):
    return [made(number, at=NOW + timedelta(hours=number)) for number in numbers]


def test_keep_spaced_by_the_hour():
    checkpoints = [made(n, at=NOW + timedelta(minutes=n)) for n in (0, 20, 59, 60, 119, 130)]
    assert KeepSpaced(hourly=2).keep(checkpoints, CONTEXT) == {
        "C130": "hourly (2026-01-31 14:00)",
        "C119": "hourly (2026-01-31 13:00)",
    }
    assert kept(KeepSpaced(hourly=3), checkpoints) == ["C119", "C130", "C59"]


def test_keep_spaced_by_the_day_and_the_week():
    # 12:00 on Saturday the 31st; Sunday the 1st still belongs to ISO week 5, Monday the 2nd begins week 6.
    assert KeepSpaced(daily=3).keep(hours(0, 11, 12, 35, 36), CONTEXT) == {
        "C36": "daily (2026-02-02)",
        "C35": "daily (2026-02-01)",
        "C11": "daily (2026-01-31)",
    }
    assert KeepSpaced(weekly=9).keep(hours(0, 11, 12, 35, 36), CONTEXT) == {
        "C36": "weekly (2026-W06)",
        "C35": "weekly (2026-W05)",
    }


def test_one_checkpoint_may_be_kept_for_several_spacings():
    assert KeepSpaced(hourly=1, daily=1, weekly=1).keep(hours(0, 1), CONTEXT) == {
        "C1": "hourly (2026-01-31 13:00), daily (2026-01-31), weekly (2026-W05)"
    }


def test_hours_without_checkpoints_do_not_count():
    assert kept(KeepSpaced(hourly=2), hours(0, 1000)) == ["C0", "C1000"]


def test_spacing_is_in_utc_wherever_a_checkpoint_was_made():
    east = timezone(timedelta(hours=9))
    checkpoints = [
        made(1, at=datetime(2026, 2, 1, 1, 0, tzinfo=east)),  # 16:00 on the day before, in UTC
        made(2, at=datetime(2026, 1, 31, 17, 0, tzinfo=UTC)),
    ]
    assert kept(KeepSpaced(daily=5), checkpoints) == ["C2"]


def test_weeks_across_a_new_year():
    new_year = [
        made(1, at=datetime(2024, 12, 29, tzinfo=UTC)),
        made(2, at=datetime(2024, 12, 30, tzinfo=UTC)),
        made(3, at=datetime(2025, 1, 5, tzinfo=UTC)),
    ]
    assert KeepSpaced(weekly=2).keep(new_year, CONTEXT) == {
        "C3": "weekly (2025-W01)",
        "C1": "weekly (2024-W52)",
    }


def test_keep_within_bytes():
    # Newest first: 100 for C3 itself, then 10 (what C3 replaced) for C2, then 20 (what C2 replaced) for C1.
    checkpoints = [made(1, written=100), made(2, written=20), made(3, written=10)]
    assert kept(KeepWithinBytes(109), checkpoints) == ["C3"]
    assert kept(KeepWithinBytes(110), checkpoints) == ["C2", "C3"]
    assert kept(KeepWithinBytes(129), checkpoints) == ["C2", "C3"]
    assert kept(KeepWithinBytes(130), checkpoints) == ["C1", "C2", "C3"]


def test_the_newest_is_kept_however_large():
    assert kept(KeepWithinBytes(1), steps(1, 2)) == ["C2"]
    assert kept(KeepWithinBytes(1), []) == []


def test_nothing_older_than_the_first_that_does_not_fit_is_kept():
    checkpoints = [made(1), made(2, written=0), made(3, written=500), made(4, written=0)]
    assert kept(KeepWithinBytes(200), checkpoints) == ["C3", "C4"]


def test_limits_in_words():
    assert KeepWithinBytes("50 GB").describe(CONTEXT) == "within 50 GB"
    assert KeepWithinBytes(500).describe(CONTEXT) == "within 500 bytes"
    assert kept(KeepWithinBytes("0.11 kB"), [made(1), made(2), made(3)]) == ["C2", "C3"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (7, 7),
        ("7", 7),
        ("7 B", 7),
        ("2KB", 2_000),
        ("2 KiB", 2_048),
        (" 50 gb ", 50_000_000_000),
        ("50 GiB", 50 * 1024**3),
        ("1.5 MB", 1_500_000),
        ("3 TB", 3 * 10**12),
        ("3 TiB", 3 * 1024**4),
        ("1 PB", 10**15),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "5 G", "5 iB", "5 EB", "-5 GB", "1e9", "5 GB 3", "٣", None, 1.5, True]
)
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="size"):
        parse_bytes(text)


# Arguments


@pytest.mark.parametrize(
    "make",
    [
        lambda: KeepLast(0),
        lambda: KeepLast(-1),
        lambda: KeepLast(1.5),
        lambda: KeepLast(True),
        lambda: KeepLast("3"),
        lambda: KeepBest(0),
        lambda: KeepBest(1, "x", "largest"),
        lambda: KeepEvery(),
        lambda: KeepEvery(steps=10, minutes=10),
        lambda: KeepEvery(steps=0),
        lambda: KeepEvery(steps=2.5),
        lambda: KeepEvery(minutes=0),
        lambda: KeepEvery(minutes=-1),
        lambda: KeepEvery(minutes=math.nan),
        lambda: KeepEvery(minutes=math.inf),
        lambda: KeepEvery(minutes="5"),
        lambda: KeepTagged(""),
        lambda: KeepTagged(None),
        lambda: KeepSpaced(),
        lambda: KeepSpaced(daily=-1),
        lambda: KeepSpaced(hourly=1.5),
        lambda: KeepWithinBytes(0),
        lambda: KeepWithinBytes(-5),
        lambda: KeepWithinBytes("0 GB"),
        lambda: KeepWithinBytes("much"),
        lambda: RetentionContext(NOW, "x", "best"),
    ],
)
def test_arguments_without_meaning(make):
    with pytest.raises(UsageError):
        make()


def test_policies_are_frozen_values():
    assert KeepLast(3) == KeepLast(3) != KeepLast(2)
    assert len({KeepEvery(steps=3), KeepEvery(steps=3), KeepEvery(minutes=3)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        KeepLast(3).n = 4


# Their union


def test_a_checkpoint_is_kept_if_any_policy_keeps_it_and_every_decision_says_why():
    checkpoints = losses(0.1, 0.5, 0.9, 0.7, 0.6)
    decisions = decide([KeepLast(2), KeepBest(1), KeepEvery(steps=2)], checkpoints, LOSS)
    best = "best 1 by val_loss (min)"
    assert reasons(decisions) == {
        "C0": (True, (best, "every 2 steps")),
        "C1": (False, (f"kept by none of: last 2, {best}, every 2 steps",)),
        "C2": (True, ("every 2 steps",)),
        "C3": (True, ("last 2",)),
        "C4": (True, ("last 2", "every 2 steps", "newest")),
    }


def test_decisions_come_oldest_first_whatever_the_order_given():
    decisions = decide([KeepLast(1)], steps(3, 1, 2), CONTEXT)
    assert [decision.checkpoint.step for decision in decisions] == [1, 2, 3]


def test_pins_are_kept():
    decisions = decide([KeepLast(1)], [made(1, pinned=True), *steps(2, 3)], CONTEXT)
    assert reasons(decisions)["C1"] == (True, ("pinned",))


def test_the_newest_is_kept_whatever_the_policies_say():
    decisions = decide([KeepBest(1)], losses(0.1, 0.5), LOSS)
    assert reasons(decisions)["C1"] == (True, ("newest",))


def test_the_newest_is_the_one_a_resume_would_take():
    older_attempt_ran_on = [made(9), made(5, attempt=2)]
    decisions = decide([KeepTagged()], older_attempt_ran_on, CONTEXT)
    assert {decision.checkpoint.id: decision.keep for decision in decisions} == {"C9": False, "C5": True}


def test_without_a_policy_everything_is_kept():
    assert reasons(decide([], steps(1, 2), CONTEXT)) == {
        "C1": (True, ("no retention policy",)),
        "C2": (True, ("no retention policy",)),
    }


def test_nothing_to_decide():
    assert decide([KeepLast(1)], [], CONTEXT) == []


def test_a_policy_of_ones_own():
    class KeepOdd:
        def keep(self, checkpoints, context):
            return {each.id: "" for each in checkpoints if each.step % 2} | {"unknown": "x"}

        def describe(self, context):
            return "odd steps"

    assert reasons(decide([KeepOdd()], steps(1, 2, 4), CONTEXT)) == {
        "C1": (True, ("odd steps",)),
        "C2": (False, ("kept by none of: odd steps",)),
        "C4": (True, ("newest",)),
    }


def test_the_same_reason_is_given_once():
    (decision,) = decide([KeepLast(1), KeepLast(1)], steps(1), CONTEXT)
    assert decision.reasons == ("last 1", "newest")
