"""Registration, order, conditions, vetoes, isolation, statistics, re-entrancy."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest

from ckpt_core import clock
from ckpt_core.errors import HookError, UsageError
from ckpt_core.hooks import (
    BaseHook,
    HookContext,
    HookEvent,
    HookFailure,
    HookManager,
    HookOutcome,
    HookPriority,
    hook,
)

STEP = HookContext(HookEvent.STEP_END, step=7)


def before_save():
    return HookContext(HookEvent.BEFORE_SAVE, step=7, reason="every 100 steps")


def noting(seen, name, *events, **options):
    return hook(*(events or (HookEvent.STEP_END,)), name=name, **options)(lambda context: seen.append(name))


def test_nothing_registered_nothing_happens():
    assert HookManager().fire(STEP) == HookOutcome()


def test_only_the_hooks_of_the_event_run():
    seen = []
    manager = HookManager(
        [noting(seen, "step"), noting(seen, "both", *HookEvent), noting(seen, "end", HookEvent.TRAIN_END)]
    )
    manager.fire(STEP)
    assert seen == ["step", "both"]


def test_hooks_get_the_facts():
    seen = []
    manager = HookManager([hook(HookEvent.AFTER_SAVE)(seen.append)])
    error = OSError("x")
    manager.fire(
        HookContext(
            HookEvent.AFTER_SAVE,
            step=3,
            epoch=1,
            experiment="digits",
            metrics={"a": 1.0},
            data={"b": 2},
            reason="asked",
            error=error,
        )
    )
    (context,) = seen
    assert (context.event, context.step, context.epoch, context.experiment) == (
        HookEvent.AFTER_SAVE,
        3,
        1,
        "digits",
    )
    assert (context.metrics["a"], context.data["b"], context.reason, context.error) == (
        1.0,
        2,
        "asked",
        error,
    )


def test_order_is_by_priority_then_registration():
    seen = []
    manager = HookManager()
    for name, priority in [
        ("low", HookPriority.LOW),
        ("normal 1", HookPriority.NORMAL),
        ("critical", HookPriority.CRITICAL),
        ("normal 2", HookPriority.NORMAL),
        ("high", HookPriority.HIGH),
    ]:
        manager.register_hook(noting(seen, name, priority=priority))
    manager.fire(STEP)
    assert seen == ["critical", "high", "normal 1", "normal 2", "low"]
    assert [each.name for each in manager.hooks(HookEvent.STEP_END)] == seen
    assert [each.name for each in manager.hooks()] == seen
    assert manager.hooks(HookEvent.TRAIN_END) == []


def test_ties_stay_in_the_order_of_registration_after_one_left():
    seen = []
    first, second, third = (noting(seen, name) for name in ("1", "2", "3"))
    manager = HookManager([first, second, third])
    manager.unregister_hook(first)
    manager.register_hook(first)
    manager.fire(STEP)
    assert seen == ["2", "3", "1"]


def test_events_given_at_registration_replace_the_hooks_own():
    seen = []
    manager = HookManager()
    manager.register_hook(noting(seen, "a"), events=[HookEvent.TRAIN_END, "epoch_end"])
    for event in (HookEvent.STEP_END, HookEvent.TRAIN_END, HookEvent.EPOCH_END):
        manager.fire(HookContext(event))
    assert seen == ["a", "a"]


def test_a_plain_function_can_be_registered_with_events():
    seen = []
    manager = HookManager()

    def note(context):
        seen.append(context.event)

    registered = manager.register_hook(note, events=HookEvent.STEP_END)
    manager.fire(STEP)
    assert (registered.name, seen) == ("note", [HookEvent.STEP_END])
    manager.unregister_hook(note)
    assert manager.hooks() == []


@pytest.mark.parametrize("way", ["object", "name"])
def test_unregistering(way):
    seen = []
    manager = HookManager([noting(seen, "a"), noting(seen, "b")])
    manager.unregister_hook(manager.hooks()[0] if way == "object" else "a")
    manager.fire(STEP)
    assert seen == ["b"]
    assert list(manager.statistics()) == ["b"]


def test_unregistering_a_stranger_names_those_registered():
    manager = HookManager([noting([], "a")])
    with pytest.raises(UsageError, match=r"'b'.*: a$") as caught:
        manager.unregister_hook("b")
    assert caught.value.kind == "unknown"


def test_one_object_cannot_be_registered_twice():
    once = noting([], "a")
    manager = HookManager([once])
    with pytest.raises(UsageError, match="already") as caught:
        manager.register_hook(once)
    assert (caught.value.kind, caught.value.hook) == ("registered", "a")


def test_names_that_are_taken_get_a_number():
    manager = HookManager([noting([], "a"), noting([], "a"), noting([], "a")])
    assert list(manager.statistics()) == ["a", "a-2", "a-3"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1.0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"timeout": "5"}, "timeout is '5'"),
        ({"timeout": True}, "timeout is True"),
        ({"on_error": "ignore"}, "on_error"),
        ({"priority": 9}, "priority"),
        ({"condition": "step > 3"}, "condition"),
        ({"priority": HookPriority.BACKGROUND, "on_error": "raise"}, "BACKGROUND"),
    ],
)
def test_attributes_without_meaning_are_refused_at_registration(options, word):
    manager = HookManager()
    with pytest.raises(UsageError, match=word):
        manager.register_hook(noting([], "a", **options))
    assert manager.hooks() == []


def test_hooks_without_events_and_things_that_are_no_hooks_are_refused():
    class Eventless(BaseHook):
        def execute(self, context):
            return None

    manager = HookManager()
    for unusable in (Eventless(), print, "print"):
        with pytest.raises(UsageError):
            manager.register_hook(unusable)
    with pytest.raises(UsageError, match="after_saving"):
        manager.register_hook(print, events="after_saving")
    with pytest.raises(UsageError, match="background_limit"):
        HookManager(background_limit=0)


# Conditions


def test_a_false_condition_skips_the_call():
    seen = []
    manager = HookManager([noting(seen, "a", condition=lambda context: context.step % 2 == 0)])
    for step in (1, 2, 3, 4):
        manager.fire(HookContext(HookEvent.STEP_END, step=step))
    assert seen == ["a", "a"]
    assert manager.statistics()["a"].calls == 2


def test_a_condition_that_raises_is_a_failure_and_no_call(caplog):
    seen = []
    broken = noting(seen, "broken", condition=lambda context: context.metrics["absent"])
    manager = HookManager([broken, noting(seen, "next")])
    outcome = manager.fire(STEP)
    assert seen == ["next"]
    (failure,) = outcome.failures
    assert (failure.hook, failure.kind, type(failure.error)) == ("broken", "condition", KeyError)
    counted = manager.statistics()["broken"]
    assert (counted.calls, counted.failures) == (0, 1)
    assert "condition" in caplog.text


# Vetoes


def test_false_vetoes_what_is_about_to_happen():
    @hook(HookEvent.BEFORE_SAVE)
    def guard(context):
        return False

    manager = HookManager([guard])
    outcome = manager.fire(before_save())
    assert (outcome.vetoed, outcome.reasons) == (True, ("guard: returned False",))
    assert manager.statistics()["guard"].vetoes == 1


@pytest.mark.parametrize("returned", [True, False])
def test_a_veto_may_say_why(returned):
    @hook(HookEvent.BEFORE_DELETE)
    def guard(context):
        answer = context.veto("is in use")
        return answer if returned else None

    outcome = HookManager([guard]).fire(HookContext(HookEvent.BEFORE_DELETE))
    assert outcome == HookOutcome(vetoed=True, reasons=("guard: is in use",))


@pytest.mark.parametrize("answer", [None, True, 0, "", [], np.True_, np.float64(0)])
def test_nothing_but_false_is_a_veto(answer):
    assert not HookManager([hook(HookEvent.BEFORE_SAVE)(lambda c: answer)]).fire(before_save()).vetoed


def test_the_false_of_numpy_is_a_veto():
    guard = hook(HookEvent.BEFORE_SAVE)(lambda c: np.float32(2) < np.float32(1))
    assert HookManager([guard]).fire(before_save()).vetoed


def test_an_answer_that_cannot_be_read_is_a_failure_and_no_veto():
    guard = hook(HookEvent.BEFORE_SAVE, name="guard")(lambda c: np.zeros(2, bool))
    outcome = HookManager([guard]).fire(before_save())
    assert not outcome.vetoed
    assert [(failure.hook, failure.kind) for failure in outcome.failures] == [("guard", "raised")]


def test_false_on_other_events_means_nothing():
    manager = HookManager([hook(HookEvent.AFTER_SAVE, name="a")(lambda c: False)])
    assert manager.fire(HookContext(HookEvent.AFTER_SAVE)) == HookOutcome()
    assert manager.statistics()["a"].vetoes == 0


def test_the_first_veto_ends_the_firing():
    seen = []
    manager = HookManager(
        [
            noting(seen, "first", HookEvent.BEFORE_SAVE, priority=HookPriority.HIGH),
            hook(HookEvent.BEFORE_SAVE, name="guard")(lambda context: context.veto("full")),
            noting(seen, "later", HookEvent.BEFORE_SAVE),
            noting(seen, "background", HookEvent.BEFORE_SAVE, priority=HookPriority.BACKGROUND),
        ]
    )
    assert manager.fire(before_save()).reasons == ("guard: full",)
    assert manager.drain(30)
    assert seen == ["first"]


# Requests to save


def test_requests_reach_the_caller():
    manager = HookManager(
        [
            hook(HookEvent.STEP_END)(lambda context: context.request_save("every 100 steps")),
            hook(HookEvent.STEP_END)(lambda context: context.request_save("asked for")),
        ]
    )
    context = HookContext(HookEvent.STEP_END, step=100)
    outcome = manager.fire(context)
    assert outcome.save_requests == context.save_requests == ("every 100 steps", "asked for")


def test_a_hook_sees_the_requests_made_before_it():
    seen = []
    manager = HookManager(
        [
            hook(HookEvent.STEP_END)(lambda context: context.request_save("first")),
            hook(HookEvent.STEP_END)(lambda context: seen.append(context.save_requests)),
        ]
    )
    manager.fire(HookContext(HookEvent.STEP_END))
    assert seen == [("first",)]


def test_an_outcome_holds_the_requests_of_its_own_firing():
    manager = HookManager([hook(HookEvent.STEP_END)(lambda context: context.request_save("again"))])
    context = HookContext(HookEvent.STEP_END)
    context.request_save("earlier")
    assert manager.fire(context).save_requests == ("again",)
    assert context.save_requests == ("earlier", "again")


def test_what_a_hook_said_before_it_failed_counts():
    @hook(HookEvent.BEFORE_SAVE)
    def stumbling(context):
        context.request_save("important")
        context.veto("full")
        raise OSError("x")

    outcome = HookManager([stumbling]).fire(before_save())
    assert (outcome.save_requests, outcome.reasons) == (("important",), ("stumbling: full",))
    assert [failure.kind for failure in outcome.failures] == ["raised"]


# Isolation


def test_a_hook_that_raises_is_logged_counted_and_passed_over(caplog):
    seen = []
    error = ValueError("broken")

    @hook(HookEvent.STEP_END)
    def bad(context):
        raise error

    manager = HookManager([bad, noting(seen, "next")])
    with caplog.at_level(logging.ERROR, "ckpt_core.hooks"):
        outcome = manager.fire(STEP)
    assert outcome == HookOutcome(failures=(HookFailure("bad", "raised", error),))
    assert seen == ["next"]
    assert (manager.statistics()["bad"].calls, manager.statistics()["bad"].failures) == (1, 1)
    (record,) = caplog.records
    assert record.getMessage() == "hook bad raised ValueError('broken') on STEP_END at step 7"
    assert record.exc_info[1] is error


def test_the_traceback_is_logged_once_only(caplog):
    manager = HookManager([hook(HookEvent.STEP_END)(lambda context: 1 / 0)])
    for _ in range(3):
        manager.fire(STEP)
    assert [record.exc_info is None for record in caplog.records] == [False, True, True]


def test_a_failed_hook_does_not_veto():
    @hook(HookEvent.BEFORE_SAVE)
    def bad(context):
        raise ValueError

    assert not HookManager([bad]).fire(before_save()).vetoed


def test_a_hook_that_may_raise_does():
    seen = []
    cause = OSError("no route")

    @hook(HookEvent.STEP_END, on_error="raise")
    def strict(context):
        context.request_save("before it failed")
        raise cause

    manager = HookManager([strict, noting(seen, "next")])
    context = HookContext(HookEvent.STEP_END, step=7)
    with pytest.raises(HookError, match=r"'strict' raised OSError.*at step 7.*isolate") as caught:
        manager.fire(context)
    assert caught.value.__cause__ is cause
    assert (caught.value.kind, caught.value.hook, caught.value.event, caught.value.step) == (
        "raised",
        "strict",
        HookEvent.STEP_END,
        7,
    )
    assert seen == []
    assert context.save_requests == ("before it failed",)
    assert manager.statistics()["strict"].failures == 1


def test_a_condition_that_may_raise_does():
    manager = HookManager([noting([], "a", condition=lambda c: 1 / 0, on_error="raise")])
    with pytest.raises(HookError) as caught:
        manager.fire(STEP)
    assert caught.value.kind == "condition"


@pytest.mark.parametrize("exit_", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("timeout", [None, 30])
def test_what_is_no_exception_goes_through(exit_, timeout):
    seen = []

    @hook(HookEvent.STEP_END, timeout=timeout)
    def leaving(context):
        raise exit_

    with pytest.raises(exit_):
        HookManager([leaving, noting(seen, "next")]).fire(STEP)
    assert seen == []


def test_statistics_add_up(monkeypatch):
    times = iter([10.0, 12.5, 20.0, 21.0])
    manager = HookManager([noting([], "a")])
    monkeypatch.setattr(clock, "monotonic", lambda: next(times))
    manager.fire(STEP)
    manager.fire(STEP)
    counted = manager.statistics()["a"]
    assert (counted.name, counted.calls, counted.seconds) == ("a", 2, 3.5)
    assert (counted.failures, counted.timeouts, counted.vetoes, counted.dropped) == (0, 0, 0, 0)


def test_plain_hooks_run_on_the_calling_thread_and_make_no_other():
    seen = []
    before = threading.active_count()
    manager = HookManager(
        [
            hook(HookEvent.STEP_END)(
                lambda c: seen.append((threading.current_thread(), threading.active_count()))
            )
        ]
    )
    manager.fire(STEP)
    assert seen == [(threading.current_thread(), before)]
    assert threading.active_count() == before


# Firing while another fires


def test_a_hook_may_fire():
    seen = []
    manager = HookManager()

    @hook(HookEvent.STEP_END)
    def outer(context):
        inner = HookContext(HookEvent.NEW_BEST)
        seen.append(manager.fire(inner).save_requests)
        context.request_save("outer")

    manager.register_hook(outer)
    manager.register_hook(lambda context: context.request_save("inner"), events=HookEvent.NEW_BEST)
    context = HookContext(HookEvent.STEP_END)
    assert manager.fire(context).save_requests == ("outer",)
    assert seen == [("inner",)]


def test_a_hook_that_fires_its_own_event_without_end_is_isolated():
    manager = HookManager()

    @hook(HookEvent.STEP_END)
    def endless(context):
        manager.fire(context)

    manager.register_hook(endless)
    manager.fire(STEP)
    assert manager.statistics()["endless"].failures > 0


def test_a_firing_runs_the_hooks_registered_when_it_began():
    seen = []
    manager = HookManager()
    last = noting(seen, "last", priority=HookPriority.LOW)

    @hook(HookEvent.STEP_END)
    def changing(context):
        manager.unregister_hook(changing)
        manager.unregister_hook(last)
        manager.register_hook(noting(seen, "new"))

    manager.register_hook(changing)
    manager.register_hook(last)
    manager.fire(STEP)
    assert seen == ["last"]
    manager.fire(STEP)
    assert seen == ["last", "new"]


def test_two_threads_may_fire_at_once():
    # Each waits inside the hook for the other: a lock around hooks would break the barrier.
    barrier = threading.Barrier(2)
    manager = HookManager()

    @hook(HookEvent.STEP_END)
    def meet(context):
        barrier.wait(30)
        context.request_save(f"step {context.step}")

    manager.register_hook(meet)
    outcomes = {}

    def fire(step):
        outcomes[step] = manager.fire(HookContext(HookEvent.STEP_END, step=step))

    threads = [threading.Thread(target=fire, args=(step,)) for step in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {step: outcome.save_requests for step, outcome in outcomes.items()} == {
        1: ("step 1",),
        2: ("step 2",),
    }
    assert manager.statistics()["meet"].calls == 2
