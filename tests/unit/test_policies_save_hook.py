"""The save policy as a hook: what it asks for on the events of a training run, and what it remembers."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest

from ckpt_core import clock
from ckpt_core.errors import UsageError
from ckpt_core.hooks import HookContext, HookEvent, HookManager
from ckpt_core.model import Attempt, Checkpoint
from ckpt_core.policies import (
    EveryEpochs,
    EveryMinutes,
    EverySteps,
    OnImprovement,
    Progress,
    SavePolicyHook,
)

BEGUN = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


@pytest.fixture
def wall(monkeypatch):
    """A wall clock that stands still; `wall(minutes)` sets it."""
    times = [BEGUN]
    monkeypatch.setattr(clock, "now", lambda: times[0])

    def set_to(minutes):
        times[0] = BEGUN + timedelta(minutes=minutes)

    return set_to


class Recording:
    """A policy that keeps what it is asked."""

    def __init__(self, answer=None):
        self.answer = answer
        self.asked: list[Progress] = []

    def wants(self, progress):
        self.asked.append(progress)
        return self.answer


def fired(manager, event, step=None, **facts):
    return manager.fire(HookContext(event, step=step, **facts)).save_requests


def steps_asked(manager, steps, event=HookEvent.STEP_END):
    return [step for step in steps if fired(manager, event, step)]


def checkpoint(**metrics):
    return Checkpoint(
        id="C",
        experiment="digits",
        step=1,
        created_at=BEGUN,
        attempt=Attempt(1, "A", "A"),
        parent=None,
        key="key",
        digest="digest",
        logical_bytes=1,
        written_bytes=1,
        tensor_count=1,
        metrics=metrics,
    )


def test_it_asks_for_a_save_with_the_reason():
    manager = HookManager([SavePolicyHook(EverySteps(10))])
    assert [hook.name for hook in manager.hooks(HookEvent.STEP_END)] == ["save-policy"]
    fired(manager, HookEvent.TRAIN_BEGIN, 0)
    assert steps_asked(manager, range(1, 41)) == [10, 20, 30, 40]
    assert fired(manager, HookEvent.STEP_END, 50) == ("every 10 steps",)


@pytest.mark.parametrize("event", list(HookEvent))
def test_the_policy_is_asked_on_three_events(event):
    policy = Recording("always")
    requests = fired(HookManager([SavePolicyHook(policy)]), event, 5, epoch=1)
    asked = event in (HookEvent.STEP_END, HookEvent.EVALUATE_END, HookEvent.EPOCH_END)
    assert requests == (("always",) if asked else ())
    assert [progress.event for progress in policy.asked] == ([event] if asked else [])


def test_the_policy_is_told_where_training_stands(wall):
    policy = Recording()
    manager = HookManager([SavePolicyHook(policy, saved=[checkpoint(loss=0.5), checkpoint(loss=0.7)])])
    fired(manager, HookEvent.TRAIN_BEGIN, 100)
    wall(1)
    fired(manager, HookEvent.AFTER_STAGE, 102, metrics={"loss": 0.9})
    wall(2)
    fired(manager, HookEvent.STEP_END, 103, epoch=4, metrics={"loss": 0.6})
    assert policy.asked == [
        Progress(
            event=HookEvent.STEP_END,
            step=103,
            epoch=4,
            now=BEGUN + timedelta(minutes=2),
            begun_at=BEGUN,
            begun_step=100,
            metrics={"loss": 0.6},
            last_saved_step=102,
            last_saved_at=BEGUN + timedelta(minutes=1),
            last_saved_epoch=None,
            lowest={"loss": 0.5},
            highest={"loss": 0.9},
            saving=True,
        )
    ]


def test_a_resumed_run_does_not_save_before_there_is_something_new():
    manager = HookManager([SavePolicyHook(EverySteps(10))])
    fired(manager, HookEvent.TRAIN_BEGIN, 25)
    assert steps_asked(manager, range(26, 41)) == [30, 40]


def test_a_loop_that_does_not_say_when_it_begins():
    assert steps_asked(HookManager([SavePolicyHook(EverySteps(10))]), range(10, 31)) == [10, 20, 30]
    assert steps_asked(HookManager([SavePolicyHook(EverySteps(10))]), range(11, 31)) == [20, 30]
    assert steps_asked(HookManager([SavePolicyHook(EverySteps(10))]), range(31)) == [10, 20, 30]


def test_several_batches_that_end_on_one_step_ask_once():
    manager = HookManager([SavePolicyHook(EverySteps(2))])
    assert steps_asked(manager, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]) == [2, 4]


def test_saves_that_others_ask_for_count(wall):
    manager = HookManager([SavePolicyHook(EveryMinutes(30))])
    fired(manager, HookEvent.TRAIN_BEGIN, 0)
    wall(20)
    fired(manager, HookEvent.AFTER_STAGE, 7)
    wall(40)
    assert not fired(manager, HookEvent.STEP_END, 8)
    wall(50)
    assert fired(manager, HookEvent.STEP_END, 9) == ("every 30 minutes",)
    wall(51)
    assert not fired(manager, HookEvent.STEP_END, 10)


def test_a_copy_that_is_staged_late_does_not_bring_back_an_old_step():
    manager = HookManager([SavePolicyHook(EverySteps(10))])
    assert steps_asked(manager, range(1, 21)) == [10, 20]
    fired(manager, HookEvent.AFTER_STAGE, 10)
    assert steps_asked(manager, range(21, 31)) == [30]


def test_training_that_goes_back_is_still_saved():
    manager = HookManager([SavePolicyHook(EverySteps(10))])
    assert steps_asked(manager, range(1, 51)) == [10, 20, 30, 40, 50]
    assert steps_asked(manager, range(21, 61)) == [30, 40, 50, 60]


def test_a_second_training_begins_anew(wall):
    policy = Recording("always")
    manager = HookManager([SavePolicyHook(policy)])
    fired(manager, HookEvent.EPOCH_END, 50, epoch=3, metrics={"loss": 1.0})
    wall(5)
    fired(manager, HookEvent.TRAIN_BEGIN, 50)
    fired(manager, HookEvent.STEP_END, 51)
    progress = policy.asked[-1]
    assert (progress.begun_step, progress.begun_at) == (50, BEGUN + timedelta(minutes=5))
    assert (progress.last_saved_step, progress.last_saved_at, progress.last_saved_epoch) == (None,) * 3
    assert progress.lowest == {"loss": 1.0}  # the lineage goes on


def test_the_end_of_an_epoch_is_asked_for_once():
    manager = HookManager([SavePolicyHook(EveryEpochs(2))])

    def ends(epochs):
        return [
            epoch for epoch in epochs if fired(manager, HookEvent.EPOCH_END, epoch * 10 + 10, epoch=epoch)
        ]

    assert ends([0, 1, 1, 2, 3]) == [1, 3]


def improved(manager, *values):
    return [
        value
        for step, value in enumerate(values, start=1)
        if fired(manager, HookEvent.EVALUATE_END, step, metrics={"loss": value})
    ]


def test_improvements_are_over_what_was_asked_for():
    manager = HookManager([SavePolicyHook(OnImprovement("loss", min_delta=0.1))])
    # Each step down is too small, but they add up: 0.85 is not saved, so 0.78 is compared with 0.9.
    assert improved(manager, 0.9, 0.85, 0.78, math.nan, 0.7, 0.6) == [0.9, 0.78, 0.6]


def test_checkpoints_of_the_lineage_are_remembered():
    hook = SavePolicyHook(OnImprovement("loss"), saved=[checkpoint(loss=0.5), checkpoint(loss=math.nan)])
    assert improved(HookManager([hook]), 0.6, 0.4) == [0.4]
    hook.remember([checkpoint(loss=0.9)])
    assert improved(HookManager([hook]), 0.95, 0.8) == [0.8]
    hook.remember([])
    assert improved(HookManager([hook]), 5.0) == [5.0]


def test_what_a_policy_was_shown_does_not_change_afterwards():
    policy = Recording("always")
    manager = HookManager([SavePolicyHook(policy)])
    improved(manager, 1.0, 2.0)
    assert [dict(progress.highest) for progress in policy.asked] == [{}, {"loss": 1.0}]


def test_events_without_a_step_are_passed_over():
    policy = Recording("always")
    manager = HookManager([SavePolicyHook(policy)])
    for event in (HookEvent.TRAIN_BEGIN, HookEvent.EVALUATE_END, HookEvent.AFTER_STAGE):
        assert manager.fire(HookContext(event)).failures == ()
    assert policy.asked == []


def test_a_policy_that_raises_does_not_touch_training(caplog):
    class Broken:
        def wants(self, progress):
            raise ValueError("broken")

    (failure,) = (
        HookManager([SavePolicyHook(Broken())]).fire(HookContext(HookEvent.STEP_END, step=1)).failures
    )
    assert (failure.hook, failure.kind) == ("save-policy", "raised")


def test_what_is_no_policy_is_refused():
    with pytest.raises(UsageError, match="wants"):
        SavePolicyHook("every 100 steps")
