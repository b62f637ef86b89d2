"""Policies that remember: improvement with patience, plateaus, drops of the learning rate, spikes of the loss, signals.

They are asked as in a training, through the hook that carries them, and go on from their state as if never stopped.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading

import pytest

from ckpt_core.errors import UsageError
from ckpt_core.hooks import HookContext, HookEvent, HookManager
from ckpt_core.policies import (
    AnyOf,
    EverySteps,
    Keep,
    OnImprovement,
    OnLearningRateDrop,
    OnLossSpike,
    OnPlateau,
    OnSignal,
    SavePolicyHook,
)


class Run:
    """A training that says no more than it must. `resumed` goes on from what another one has to remember."""

    def __init__(self, policy, state=None, rate=None):
        self.policy = policy
        self.hooks = HookManager([SavePolicyHook(policy)])
        self.kept: list[tuple[int, str, str]] = []
        self.reasons: list[tuple[int, str]] = []
        self.hooks.load_state_dict(state or {})
        self.fire(HookEvent.TRAIN_BEGIN, 0)
        if rate is not None:
            self.rate(0, None, rate)

    def resumed(self):
        """Its state goes through a text, as through a checkpoint."""
        other = Run(self.policy, json.loads(json.dumps(self.hooks.state_dict())))
        other.kept, other.reasons = list(self.kept), list(self.reasons)
        return other

    def fire(self, event, step, **facts):
        outcome = self.hooks.fire(HookContext(event, step=step, **facts))
        assert outcome.failures == ()
        self.kept.extend(outcome.keep_requests)
        self.reasons.extend((step, reason) for reason in outcome.save_requests)

    def step(self, step, loss=None, **metrics):
        self.fire(HookEvent.STEP_END, step, metrics=metrics, read_loss=lambda: loss)

    def evaluate(self, step, **metrics):
        self.step(step)
        self.fire(HookEvent.EVALUATE_END, step, metrics=metrics, epoch=step)
        self.fire(HookEvent.EPOCH_END, step, metrics=metrics, epoch=step)  # which carries them once more

    def rate(self, step, before, now):
        self.fire(HookEvent.LEARNING_RATE_CHANGED, step, data={"before": before, "now": now})

    @property
    def steps(self):
        return [step for step, _ in self.reasons]


def evaluated(policy, values, cut=None):
    """Values of `loss`, one for each step from 1 on; `cut`: stopped and resumed after so many."""
    run = Run(policy)
    for step, value in enumerate(values, 1):
        run.evaluate(step, loss=value)
        if step == cut:
            run = run.resumed()
    return run


# -- improvement ------------------------------------------------------------------------------------


def test_an_improvement_passes_over_as_many_values_as_its_patience():
    assert evaluated(OnImprovement("loss"), [9, 8, 7, 6, 5, 4, 3]).steps == [1, 2, 3, 4, 5, 6, 7]
    assert evaluated(OnImprovement("loss", patience=2), [9, 8, 7, 6, 5, 4, 3]).steps == [1, 4, 7]


def test_after_the_patience_it_must_be_better_than_what_was_saved():
    run = evaluated(OnImprovement("loss", patience=2), [5, 1, 9, 9, 4, 3, 2])
    assert run.reasons == [(1, "first loss: 5"), (5, "loss improved from 5 to 4")]


@pytest.mark.parametrize("cut", range(1, 9))
def test_patience_survives_a_resume(cut):
    values = [9, 8, 7, 7.5, 6, 5, 4, 3, 2]
    policy = OnImprovement("loss", patience=3, min_delta=0.1)
    assert evaluated(policy, values, cut).reasons == evaluated(policy, values).reasons


def test_the_best_survives_a_resume_without_any_patience():
    assert evaluated(OnImprovement("loss"), [5, 3, 4, 2], cut=2).steps == [1, 2, 4]


# -- plateaus ---------------------------------------------------------------------------------------


def test_a_plateau_is_saved_once():
    run = evaluated(OnPlateau("loss", patience=3), [5, 4, 4, 4.5, 4, 4, 4, 4, 3, 3, 3, 3, 3])
    assert run.reasons == [
        (5, "loss has not improved on 4 for 3 values"),
        (12, "loss has not improved on 3 for 3 values"),
    ]


def test_what_is_better_by_too_little_is_a_plateau():
    run = evaluated(OnPlateau("loss", patience=2, min_delta=0.5), [5, 4.9, 4.8, 4.4])
    assert run.steps == [3]


def test_the_larger_may_be_the_better():
    assert evaluated(OnPlateau("loss", mode="max", patience=2), [1, 2, 1, 2, 3]).steps == [4]


def test_nan_is_never_better():
    run = evaluated(OnPlateau("loss", patience=2), [math.nan, math.nan, 4, math.nan, math.inf])
    assert run.reasons == [
        (2, "loss has not improved for 2 values"),
        (5, "loss has not improved on 4 for 2 values"),
    ]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_plateau_survives_a_resume(cut):
    values = [5, 4, 4, 4.5, 4, 4, 3, 3, 3, 3, 3]
    policy = OnPlateau("loss", patience=3)
    assert evaluated(policy, values, cut).reasons == evaluated(policy, values).reasons


# -- the learning rate ------------------------------------------------------------------------------


def scheduled(policy, rates, cut=None):
    """`rates[n]` is what step n+1 uses."""
    run = Run(policy, rate=rates[0])
    for step in range(1, len(rates)):
        run.step(step)
        if rates[step] != rates[step - 1]:
            run.rate(step, rates[step - 1], rates[step])
        if step == cut:
            run = run.resumed()
            run.rate(step, None, rates[step])  # what a session tells when it begins
    return run


STEPWISE = [0.1] * 5 + [0.01] * 8 + [0.001] * 6


def test_before_and_after_each_drop():
    assert scheduled(OnLearningRateDrop(settle=3), STEPWISE).reasons == [
        (5, "before the learning rate drops from 0.1 to 0.01"),
        (8, "3 steps after the learning rate dropped from 0.1 to 0.01"),
        (13, "before the learning rate drops from 0.01 to 0.001"),
        (16, "3 steps after the learning rate dropped from 0.01 to 0.001"),
    ]


def test_a_drop_before_the_last_has_settled_counts_anew():
    assert scheduled(OnLearningRateDrop(settle=20), STEPWISE).steps == [5, 13]


def test_before_only():
    assert scheduled(OnLearningRateDrop(settle=0), STEPWISE).steps == [5, 13]


def test_a_schedule_without_steps_has_no_drops():
    cosine = [0.5 * (1 + math.cos(math.pi * step / 100)) for step in range(101)]
    linear = [1 - step / 100 for step in range(101)]
    warm_up = [step / 10 for step in range(1, 11)] + [1.0] * 10
    for rates in (cosine, linear, warm_up):
        assert scheduled(OnLearningRateDrop(), rates).reasons == []


def test_a_small_drop_is_none():
    rates = [1.0] * 5 + [0.8] * 5
    assert scheduled(OnLearningRateDrop(), rates).steps == []
    assert scheduled(OnLearningRateDrop(ratio=0.9, settle=0), rates).steps == [5]


@pytest.mark.parametrize("cut", range(1, len(STEPWISE)))
def test_a_drop_survives_a_resume(cut):
    policy = OnLearningRateDrop(settle=3)
    assert scheduled(policy, STEPWISE, cut).reasons == scheduled(policy, STEPWISE).reasons


# -- the loss ---------------------------------------------------------------------------------------


def falling(policy, losses, cut=None):
    run = Run(policy)
    for step, loss in enumerate(losses, 1):
        run.step(step, loss)
        if step == cut:
            run = run.resumed()
    return run


QUIET = [1.0 + 0.1 * math.sin(step) for step in range(20)]


def test_a_loss_that_is_no_number_has_the_last_good_kept():
    run = falling(OnLossSpike(), [*QUIET, math.nan, math.nan, math.nan])
    # The loss of step 20 was good: of the weights that step 19 had left.
    assert run.kept == [(19, "last-good", "loss is nan")]
    assert run.reasons == []


def test_a_spike_is_far_out_of_what_was_usual():
    run = falling(OnLossSpike(tag="before"), [*QUIET, 1.15, 5.0, 6.0, *QUIET, math.inf])
    assert run.kept == [
        (20, "before", "loss went up to 5 from 1.01411"),
        (42, "before", "loss is inf"),
    ]


def test_a_falling_loss_is_no_spike_and_a_noisy_one_neither():
    assert falling(OnLossSpike(), [2.3 * 0.95**step for step in range(200)]).kept == []
    noisy = [1 + 0.9 * math.sin(step * 1.7) + 0.3 * math.sin(step * 0.31) for step in range(300)]
    assert falling(OnLossSpike(), noisy).kept == []


def test_losses_below_zero_may_spike_too():
    assert [step for step, _, _ in falling(OnLossSpike(), [*(loss - 11 for loss in QUIET), 3.0]).kept] == [19]


def test_a_loss_that_hardly_moves_may_tremble():
    assert falling(OnLossSpike(), [1.0] * 20 + [1.05, 1.0]).kept == []
    assert len(falling(OnLossSpike(), [1.0] * 20 + [1.2, 1.0]).kept) == 1


def test_a_batch_that_is_hard_in_every_epoch_is_no_spike():
    epoch = [1.0, 1.1, 1.2, 1.15, 6.0]
    assert falling(OnLossSpike(), epoch * 8).kept == []
    assert [step for step, *_ in falling(OnLossSpike(), [*epoch * 8, 60.0]).kept] == [39]


def test_a_loss_that_stays_up_is_the_new_usual():
    run = falling(OnLossSpike(window=10), [*QUIET, *([5.0] * 40), 50.0])
    assert [reason for *_, reason in run.kept] == [
        "loss went up to 5 from 0.958776",
        "loss went up to 50 from 5",
    ]


def test_nothing_is_known_at_first():
    assert falling(OnLossSpike(), [1.0, 1.0, 50.0, 1.0]).kept == []
    assert falling(OnLossSpike(), [math.nan, 1.0]).kept == []  # there is nothing good to be kept


@pytest.mark.parametrize("cut", [1, 7, 8, 20, 21, 22, 23, 24])
def test_what_is_usual_survives_a_resume(cut):
    losses = [*QUIET, 1.1, 7.0, 8.0, 1.0, 9.0, 1.0]
    assert falling(OnLossSpike(), losses, cut).kept == falling(OnLossSpike(), losses).kept


def test_another_metric_may_be_meant():
    run = Run(OnLossSpike("train_loss"))
    for step, loss in enumerate([*QUIET, math.nan], 1):
        run.step(step, None, train_loss=loss)
    assert [step for step, _, _ in run.kept] == [19]


def test_the_loss_is_read_for_those_only_who_ask():
    asked = []
    context = HookContext(HookEvent.STEP_END, step=1, read_loss=lambda: asked.append(1))
    HookManager([SavePolicyHook(EverySteps(1) | OnPlateau("loss"))]).fire(context)
    assert asked == []
    HookManager([SavePolicyHook(EverySteps(1) | OnLossSpike())]).fire(context)
    assert asked == [1]


# -- signals ----------------------------------------------------------------------------------------


@pytest.fixture
def earlier():
    """Who has the signal before."""
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda *_: heard.append("earlier"))
    yield heard
    signal.signal(signal.SIGUSR2, before)


def test_a_signal_is_heard_once_and_given_back_at_the_end(earlier):
    run = Run(OnSignal("SIGUSR2"))
    run.step(1)
    os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGUSR2)
    run.step(2)
    run.step(3)
    assert run.reasons == [(2, "SIGUSR2 received")]
    run.fire(HookEvent.TRAIN_END, 3)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert earlier == ["earlier"]


def test_a_training_that_failed_gives_it_back_too(earlier):
    run = Run(OnSignal("SIGUSR2") | EverySteps(5))
    run.fire(HookEvent.TRAIN_FAILED, 3)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert earlier == ["earlier"]


def test_elsewhere_than_in_the_main_thread_it_says_that_it_cannot(earlier, caplog):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(Run(OnSignal("SIGUSR2"))))
    thread.start()
    thread.join()
    assert "not in the main thread: no save on SIGUSR2" in caplog.text
    os.kill(os.getpid(), signal.SIGUSR2)
    runs[0].step(1)
    assert (runs[0].reasons, earlier) == ([], ["earlier"])


# -- together ---------------------------------------------------------------------------------------


def test_each_policy_has_a_memory_of_its_own():
    policy = AnyOf(
        OnPlateau("loss", patience=2), OnPlateau("loss", patience=4), OnLossSpike(), EverySteps(100)
    )
    run = evaluated(policy, [5, 4, 4, 4, 4, 4], cut=3)
    assert run.reasons == [
        (4, "loss has not improved on 4 for 2 values"),
        (6, "loss has not improved on 4 for 4 values"),
    ]
    assert policy.reads == {"loss"}
    assert (OnSignal("SIGUSR2") | OnLearningRateDrop()).signals == ("SIGUSR2",)


def test_another_policy_beside_it_takes_nothing_from_its_memory():
    before = Run(OnPlateau("loss", patience=3) | EverySteps(100))
    for step, value in enumerate([5, 4, 4], 1):
        before.evaluate(step, loss=value)
    after = Run(EverySteps(50) | OnPlateau("loss", patience=3), before.hooks.state_dict())
    for step, value in enumerate([4, 4], 4):
        after.evaluate(step, loss=value)
    assert after.steps == [5]


def test_a_policy_of_ones_own_may_be_among_them():
    class Always:
        def wants(self, progress):
            return "always"

    assert falling(OnLossSpike() | Always(), [1.0, 1.0]).steps == [1, 2]


def test_each_that_has_something_kept_is_heard():
    policy = OnLossSpike() | EverySteps(100) | OnLossSpike("norm", tag="calm")
    run = Run(policy)
    for step, loss in enumerate(QUIET, 1):
        run.step(step, loss, norm=loss if step < 20 else math.inf)
    run.step(21, math.nan, norm=1.0)
    assert run.kept == [(18, "calm", "norm is inf"), (19, "last-good", "loss is nan")]
    run = Run(policy)
    for step, loss in enumerate([*QUIET, math.nan], 1):
        run.step(step, loss, norm=loss)
    assert run.kept == [(19, "last-good", "loss is nan"), (19, "calm", "norm is nan")]


def test_of_two_that_have_the_same_tag_the_earlier_step_has_it():
    class Earlier:
        def wants(self, progress):
            return None

        def keeps(self, progress):
            wish = Keep(progress.step - 5, "last-good", "five before")
            return [wish, Keep(3, "early", "early on")] if progress.step == 21 else None

    run = falling(OnLossSpike() | Earlier(), [*QUIET, math.nan])
    assert run.kept == [
        (16, "last-good", "loss is nan; five before"),
        (3, "early", "early on"),
    ]
    assert falling(Earlier(), [1.0] * 21).kept == [(16, "last-good", "five before"), (3, "early", "early on")]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: OnImprovement("loss", patience=-1), "OnImprovement.patience is -1"),
        (lambda: OnPlateau(""), "OnPlateau.metric is ''"),
        (lambda: OnPlateau("loss", mode="up"), "OnPlateau.mode is 'up'"),
        (lambda: OnPlateau("loss", patience=0), "OnPlateau.patience is 0"),
        (lambda: OnPlateau("loss", min_delta=-1), "OnPlateau.min_delta is -1"),
        (lambda: OnLearningRateDrop(ratio=1), "below 1"),
        (lambda: OnLearningRateDrop(ratio=0), "ratio is 0"),
        (lambda: OnLearningRateDrop(settle=1.5), "settle is 1.5"),
        (lambda: OnLossSpike(deviations=0), "deviations is 0"),
        (lambda: OnLossSpike(window=3), "window is 3"),
        (lambda: OnLossSpike(metric=""), "metric is ''"),
        (lambda: OnLossSpike(tag=None), "tag is None"),
        (lambda: OnSignal("SIGKILL"), "that can be handled"),
        (lambda: OnSignal("SIG_IGN"), "that can be handled"),
        (lambda: OnSignal(10), "that can be handled"),
    ],
)
def test_nonsense_is_refused(make, said):
    with pytest.raises(UsageError, match=said):
        make()
