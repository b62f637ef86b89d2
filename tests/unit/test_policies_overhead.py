"""What saves cost: measured by how much longer steps take, and kept to a share of the time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ckpt_core import UsageError, WithinOverhead, clock
from ckpt_core.hooks import HookContext, HookEvent, HookManager
from ckpt_core.policies import EverySteps, Progress, SavePolicyHook
from ckpt_core.policies.overhead import OverheadMeter

BEGUN = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def timed(meter: OverheadMeter, *seconds: float, at: float = 0.0) -> float:
    """Steps of so many seconds each."""
    for each in seconds:
        at += each
        meter.step(at)
    return at


def test_steps_during_a_save_are_compared_with_those_without() -> None:
    meter = OverheadMeter()
    at = timed(meter, 1, 1, 1, 1)
    assert meter.cost is None
    meter.staged()
    at = timed(meter, 1.5, 1.25, at=at)
    assert meter.cost is None, "it is still being made"
    meter.done()
    at = timed(meter, 1.25, at=at)
    assert meter.cost == pytest.approx(1.0)
    timed(meter, 1, 1, 1, at=at)
    assert meter.cost == pytest.approx(1.0)


def test_a_save_within_one_step_is_seen_too() -> None:
    meter = OverheadMeter()
    at = timed(meter, 1, 1, 1)
    meter.staged()
    meter.done()
    timed(meter, 1.5, at=at)
    assert meter.cost == pytest.approx(0.5)


def test_evaluations_are_nobodys_cost() -> None:
    meter = OverheadMeter()
    at = timed(meter, 1, 1, 1)
    meter.staged()
    meter.other(at + 100)
    meter.done()
    timed(meter, 1, at=at + 100)
    assert meter.cost == pytest.approx(0.0)


def test_the_last_few_saves_count_and_one_outlier_does_not_stay() -> None:
    meter = OverheadMeter()
    at = timed(meter, 1, 1, 1)
    for extra in (9, 1, 1, 1):
        meter.staged()
        meter.done()
        at = timed(meter, 1 + extra, 1, at=at)
    assert meter.cost == pytest.approx(1.0)


def progress(step: int, seconds: float, **facts: Any) -> Progress:
    facts = {"event": HookEvent.STEP_END, "begun_at": BEGUN, **facts}
    return Progress(step=step, now=BEGUN + timedelta(seconds=seconds), **facts)


def test_the_first_save_is_made_to_find_out() -> None:
    policy = WithinOverhead(2, warm_up=5)
    assert policy.wants(progress(4, 1)) is None
    assert policy.wants(progress(5, 1)) == "to find out what a save costs"
    assert policy.wants(progress(105, 1, begun_step=100)) == "to find out what a save costs"


@pytest.mark.parametrize(("seconds", "due"), [(0.9, False), (9.9, False), (10.1, True), (-5, True)])
def test_the_interval_follows_from_the_cost(seconds: float, due: bool) -> None:
    policy = WithinOverhead(2, minutes=0)
    facts = {"last_saved_at": BEGUN, "save_cost": timedelta(seconds=0.2)}
    reason = policy.wants(progress(50, seconds, **facts))
    assert bool(reason) == due
    if reason:
        assert reason == "a save costs 0.2 s of training: one in 10 s is within 2 %"


@pytest.mark.parametrize(
    "facts",
    [
        {"saving": True},
        {"save_cost": None},
        {"event": HookEvent.EPOCH_END},
    ],
)
def test_when_it_waits(facts: dict[str, Any]) -> None:
    facts = {"last_saved_at": BEGUN, "save_cost": timedelta(0), **facts}
    assert WithinOverhead(minutes=0).wants(progress(50, 1e6, **facts)) is None


def test_never_more_often_than_it_may() -> None:
    facts = {"last_saved_at": BEGUN, "save_cost": timedelta(0)}
    assert WithinOverhead(minutes=1).wants(progress(9, 59, **facts)) is None
    assert WithinOverhead(minutes=1).wants(progress(9, 61, **facts)) is not None


@pytest.mark.parametrize("options", [{"percent": 0}, {"minutes": -1}, {"warm_up": -1}])
def test_numbers_that_mean_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="WithinOverhead"):
        WithinOverhead(**options)


def test_in_a_training_the_share_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated training: steps of 0.1 s, saves that hold it up by 0.5 s; at most 5 % of the time."""
    seconds = [0.0]
    monkeypatch.setattr(clock, "now", lambda: BEGUN + timedelta(seconds=seconds[0]))
    monkeypatch.setattr(clock, "monotonic", lambda: seconds[0])
    manager = HookManager([SavePolicyHook(WithinOverhead(5, minutes=0) | EverySteps(10**6))])
    manager.fire(HookContext(HookEvent.TRAIN_BEGIN, step=0))
    saves = 0
    for step in range(1, 2001):
        seconds[0] += 0.1
        if manager.fire(HookContext(HookEvent.STEP_END, step=step)).save_requests:
            saves += 1
            seconds[0] += 0.3  # the stall
            manager.fire(HookContext(HookEvent.AFTER_STAGE, step=step))
            seconds[0] += 0.2  # and what the next step takes longer
            manager.fire(HookContext(HookEvent.AFTER_SAVE, step=step))
    share = saves * 0.5 / seconds[0]
    assert 0.04 < share <= 0.05
