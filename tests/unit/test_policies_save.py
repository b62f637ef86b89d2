"""When each save policy wants a checkpoint, and why."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime, timedelta

import pytest

from ckpt_core.errors import UsageError
from ckpt_core.hooks import HookEvent
from ckpt_core.policies import (
    AnyOf,
    EveryEpochs,
    EveryMinutes,
    EverySteps,
    Never,
    OnImprovement,
    Progress,
    save_policy_from,
)

BEGUN = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
ASKED = (HookEvent.STEP_END, HookEvent.EPOCH_END, HookEvent.EVALUATE_END)


def at(event=HookEvent.STEP_END, *, step=0, minutes=0.0, **facts):
    return Progress(event=event, step=step, now=BEGUN + timedelta(minutes=minutes), begun_at=BEGUN, **facts)


def test_every_so_many_steps():
    policy = EverySteps(100)
    wanted = [step for step in range(1, 301) if policy.wants(at(step=step))]
    # Nothing was saved in between, so each step past the first multiple is still due.
    assert wanted == list(range(100, 301))
    assert policy.wants(at(step=100)) == "every 100 steps"
    assert EverySteps(1).wants(at(step=1)) == "every step"


def test_a_step_that_was_saved_is_not_saved_again():
    policy = EverySteps(100)
    assert policy.wants(at(step=100, last_saved_step=100)) is None
    assert policy.wants(at(step=199, last_saved_step=100)) is None
    assert policy.wants(at(step=200, last_saved_step=100))


def test_a_save_between_two_multiples_shifts_nothing():
    assert EverySteps(100).wants(at(step=150, last_saved_step=130)) is None
    assert EverySteps(100).wants(at(step=200, last_saved_step=199))


def test_a_multiple_that_is_jumped_over_is_made_up_for():
    assert EverySteps(5).wants(at(step=9, last_saved_step=5)) is None
    assert EverySteps(5).wants(at(step=11, last_saved_step=9))


def test_steps_count_from_where_training_began():
    policy = EverySteps(100)
    assert policy.wants(at(step=151, begun_step=150)) is None
    assert policy.wants(at(step=200, begun_step=150))
    assert policy.wants(at(step=101, begun_step=100)) is None


def test_training_that_went_back_is_saved_at_multiples_again():
    policy = EverySteps(100)
    assert policy.wants(at(step=301, last_saved_step=500)) is None
    assert policy.wants(at(step=400, last_saved_step=500))


def test_every_so_many_steps_looks_at_steps_only():
    for event in (HookEvent.EPOCH_END, HookEvent.EVALUATE_END):
        assert EverySteps(1).wants(at(event, step=5)) is None


def test_every_so_many_epochs():
    policy = EveryEpochs(3)
    wanted = [epoch for epoch in range(10) if policy.wants(at(HookEvent.EPOCH_END, epoch=epoch))]
    assert wanted == [2, 5, 8]
    assert policy.wants(at(HookEvent.EPOCH_END, epoch=2)) == "every 3 epochs"
    assert EveryEpochs().wants(at(HookEvent.EPOCH_END, epoch=0)) == "every epoch"


def test_the_end_of_an_epoch_is_saved_once():
    assert EveryEpochs().wants(at(HookEvent.EPOCH_END, epoch=4, last_saved_epoch=4)) is None
    assert EveryEpochs().wants(
        at(HookEvent.EPOCH_END, epoch=4, last_saved_epoch=3, last_saved_step=9, step=9)
    )


def test_every_so_many_epochs_looks_at_the_ends_of_epochs_only():
    for event in (HookEvent.STEP_END, HookEvent.EVALUATE_END):
        assert EveryEpochs().wants(at(event, epoch=1)) is None
    assert EveryEpochs().wants(at(HookEvent.EPOCH_END, epoch=None)) is None


@pytest.mark.parametrize("event", ASKED)
def test_every_so_many_minutes(event):
    policy = EveryMinutes(30)
    assert policy.wants(at(event, minutes=29.9)) is None
    assert policy.wants(at(event, minutes=30)) == "every 30 minutes"
    saved = BEGUN + timedelta(minutes=20)
    assert policy.wants(at(event, minutes=49.9, last_saved_at=saved)) is None
    assert policy.wants(at(event, minutes=50, last_saved_at=saved))


def test_a_clock_set_back_does_not_put_off_the_next_save():
    assert EveryMinutes(30).wants(at(minutes=0, last_saved_at=BEGUN + timedelta(hours=5)))
    assert EveryMinutes(30).wants(at(minutes=-1))


def test_half_minutes():
    assert EveryMinutes(0.5).wants(at(minutes=0.5)) == "every 0.5 minutes"


def evaluated(value, event=HookEvent.EVALUATE_END, **facts):
    return at(event, metrics={"val_loss": value}, **facts)


@pytest.mark.parametrize("event", ASKED)
def test_on_improvement(event):
    policy = OnImprovement("val_loss")
    known = {"lowest": {"val_loss": 0.31}, "highest": {"val_loss": 0.9}}
    assert policy.wants(evaluated(0.29, event, **known)) == "val_loss improved from 0.31 to 0.29"
    assert policy.wants(evaluated(0.31, event, **known)) is None
    assert policy.wants(evaluated(0.5, event, **known)) is None


def test_improvement_upwards():
    policy = OnImprovement("val_loss", "max")
    known = {"lowest": {"val_loss": 0.31}, "highest": {"val_loss": 0.9}}
    assert policy.wants(evaluated(0.95, **known))
    assert policy.wants(evaluated(0.5, **known)) is None


@pytest.mark.parametrize(("mode", "better", "same"), [("min", 0.25, 0.5), ("max", 1.75, 1.5)])
def test_an_improvement_has_to_exceed_the_least_one(mode, better, same):
    policy = OnImprovement("val_loss", mode, min_delta=0.5)
    known = {"lowest": {"val_loss": 1.0}, "highest": {"val_loss": 1.0}}
    assert policy.wants(evaluated(better, **known))
    assert policy.wants(evaluated(same, **known)) is None


def test_the_first_value_is_an_improvement():
    assert OnImprovement("val_loss").wants(evaluated(3.14159265)) == "first val_loss: 3.14159"
    assert OnImprovement("val_loss", min_delta=1.0).wants(evaluated(5.0))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("known", [{}, {"val_loss": 1.0}])
def test_what_is_not_finite_is_no_improvement(value, known):
    for mode in ("min", "max"):
        assert OnImprovement("val_loss", mode).wants(evaluated(value, lowest=known, highest=known)) is None


def test_without_the_metric_there_is_no_improvement():
    assert OnImprovement("accuracy", "max").wants(evaluated(0.1)) is None


def test_never():
    assert [Never().wants(at(event, step=100, epoch=1, minutes=999)) for event in ASKED] == [None] * 3


def test_any_of_gives_every_reason():
    policy = AnyOf(EverySteps(100), EveryMinutes(30), Never())
    assert policy.wants(at(step=99)) is None
    assert policy.wants(at(step=100)) == "every 100 steps"
    assert policy.wants(at(step=100, minutes=31)) == "every 100 steps; every 30 minutes"


def test_policies_combine():
    combined = EverySteps(100) | EveryEpochs(1) | OnImprovement("val_loss")
    assert combined == AnyOf(EverySteps(100), EveryEpochs(1), OnImprovement("val_loss"))
    assert AnyOf(Never()) | AnyOf(EverySteps(1)) == AnyOf(Never(), EverySteps(1))
    assert combined.policies == (EverySteps(100), EveryEpochs(1), OnImprovement("val_loss"))


def test_policies_of_ones_own_combine_from_either_side():
    class Mine:
        def wants(self, progress):
            return "mine"

    mine = Mine()
    assert (mine | EverySteps(100)).policies == (mine, EverySteps(100))
    assert (EverySteps(100) | mine).policies == (EverySteps(100), mine)
    assert (mine | Never()).wants(at()) == "mine"


def test_shortcuts():
    assert save_policy_from() == Never()
    assert save_policy_from(every_n_steps=5) == EverySteps(5)
    assert save_policy_from(every_n_epochs=2) == EveryEpochs(2)
    assert save_policy_from(every_minutes=1.5) == EveryMinutes(1.5)
    assert save_policy_from(5, 2, 1.5) == AnyOf(EverySteps(5), EveryEpochs(2), EveryMinutes(1.5))


@pytest.mark.parametrize(
    "make",
    [
        lambda: EverySteps(0),
        lambda: EverySteps(1.5),
        lambda: EveryEpochs(-1),
        lambda: EveryMinutes(0),
        lambda: EveryMinutes(math.nan),
        lambda: OnImprovement(""),
        lambda: OnImprovement(None),
        lambda: OnImprovement("x", "up"),
        lambda: OnImprovement("x", min_delta=-0.1),
        lambda: OnImprovement("x", min_delta=math.inf),
        lambda: AnyOf(),
        lambda: save_policy_from(every_n_steps=0),
    ],
)
def test_arguments_without_meaning(make):
    with pytest.raises(UsageError):
        make()


def test_policies_are_frozen_values():
    assert len({EverySteps(3), EverySteps(3), Never(), AnyOf(Never())}) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        EverySteps(3).n = 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        AnyOf(Never()).policies = ()
