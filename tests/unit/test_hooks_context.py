"""Events, priorities, contexts, and what makes an object or a function a hook."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from ckpt_core.errors import UsageError
from ckpt_core.hooks import BaseHook, FunctionHook, HookContext, HookEvent, HookManager, HookPriority, hook


def test_events_are_those_of_the_design():
    assert {event.name for event in HookEvent} == {
        *("TRAIN_BEGIN", "EPOCH_BEGIN", "STEP_END", "EVALUATE_END", "EPOCH_END", "TRAIN_END"),
        *("TRAIN_FAILED", "PREEMPTED", "BEFORE_SAVE", "AFTER_STAGE", "AFTER_SAVE", "SAVE_FAILED", "NEW_BEST"),
        *("BEFORE_LOAD", "AFTER_LOAD", "LOAD_FAILED", "BEFORE_DELETE", "AFTER_DELETE"),
        *("CORRUPTION_FOUND", "AFTER_REPAIR", "LEARNING_RATE_CHANGED"),
    }
    assert all(event.value == event.name.lower() for event in HookEvent)


def test_only_before_events_can_be_vetoed():
    assert [event for event in HookEvent if event.can_be_vetoed] == [
        HookEvent.BEFORE_SAVE,
        HookEvent.BEFORE_LOAD,
        HookEvent.BEFORE_DELETE,
    ]


def test_priorities_run_from_critical_to_background():
    assert [priority.name for priority in sorted(HookPriority)] == [
        "CRITICAL",
        "HIGH",
        "NORMAL",
        "LOW",
        "BACKGROUND",
    ]


def test_a_context_is_frozen_and_keeps_copies_of_its_mappings():
    metrics, data = {"loss": 1.0}, {"bytes": 3}
    context = HookContext(HookEvent.STEP_END, step=1, metrics=metrics, data=data)
    metrics["loss"] = 2.0
    data.clear()
    assert (context.metrics["loss"], context.data["bytes"]) == (1.0, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        context.step = 2
    with pytest.raises(TypeError):
        context.metrics["loss"] = 3.0


def test_facts_that_do_not_apply_are_none():
    context = HookContext(HookEvent.TRAIN_BEGIN)
    assert (context.step, context.epoch, context.experiment, context.attempt) == (None,) * 4
    assert (context.checkpoint, context.reason, context.error) == (None,) * 3
    assert (dict(context.metrics), dict(context.data), context.save_requests) == ({}, {}, ())


def test_an_event_may_be_given_by_its_word():
    assert HookContext("step_end").event is HookEvent.STEP_END


def test_requests_are_kept_in_order():
    context = HookContext(HookEvent.STEP_END)
    context.request_save("first")
    context.request_save("second")
    assert context.save_requests == ("first", "second")


def test_contexts_of_equal_facts_are_equal_whatever_was_asked_of_them():
    one, other = HookContext(HookEvent.STEP_END, step=1), HookContext(HookEvent.STEP_END, step=1)
    one.request_save("x")
    assert one == other


def test_a_veto_is_false_and_needs_an_event_that_can_be_vetoed():
    assert HookContext(HookEvent.BEFORE_SAVE).veto("no space") is False
    with pytest.raises(UsageError, match=r"BEFORE_\*.*AFTER_SAVE") as caught:
        HookContext(HookEvent.AFTER_SAVE).veto("too late")
    assert caught.value.kind == "veto"


def test_hooks_are_named_by_their_class_unless_they_say_otherwise():
    class Upload(BaseHook):
        events = (HookEvent.AFTER_SAVE,)

        def execute(self, context):
            return None

    class Named(Upload):
        name = "given"

    class Unnamed(Named):
        pass

    assert [hook_class().name for hook_class in (Upload, Named, Unnamed)] == ["Upload", "given", "Unnamed"]
    assert Upload(name="mine").name == "mine"


def test_the_constructor_overrides_the_class_for_one_instance():
    class Upload(BaseHook):
        events = (HookEvent.AFTER_SAVE,)
        priority = HookPriority.LOW
        timeout = 5.0

        def execute(self, context):
            return None

    special = Upload(
        events=HookEvent.TRAIN_END,
        priority=HookPriority.HIGH,
        timeout=1.0,
        on_error="raise",
        condition=bool,
    )
    assert (special.events, special.priority, special.timeout) == (
        (HookEvent.TRAIN_END,),
        HookPriority.HIGH,
        1.0,
    )
    assert (special.on_error, special.condition) == ("raise", bool)
    plain = Upload()
    assert (plain.events, plain.priority, plain.timeout, plain.on_error, plain.condition) == (
        (HookEvent.AFTER_SAVE,),
        HookPriority.LOW,
        5.0,
        "isolate",
        None,
    )


def test_a_hook_without_execute_cannot_be_made():
    class Idle(BaseHook):
        events = (HookEvent.AFTER_SAVE,)

    with pytest.raises(TypeError, match="execute"):
        Idle()


def test_a_decorated_function_is_a_hook_and_still_a_function():
    @hook(HookEvent.AFTER_SAVE, HookEvent.TRAIN_END, priority=HookPriority.LOW, timeout=3, on_error="raise")
    def report(context):
        """Tell somebody."""
        return context.step == 1

    assert isinstance(report, FunctionHook)
    assert (report.name, report.__doc__) == ("report", "Tell somebody.")
    assert report.events == (HookEvent.AFTER_SAVE, HookEvent.TRAIN_END)
    assert (report.priority, report.timeout, report.on_error) == (HookPriority.LOW, 3, "raise")
    assert report(HookContext(HookEvent.AFTER_SAVE, step=1)) is True
    assert report.execute(HookContext(HookEvent.AFTER_SAVE, step=2)) is False


def test_a_decorated_function_may_have_another_name():
    assert hook(HookEvent.AFTER_SAVE, name="other")(print).name == "other"


@pytest.mark.parametrize("events", [(), ("after_saving",), (print,)])
def test_a_decorator_without_a_real_event_is_refused(events):
    with pytest.raises(UsageError, match=r"HookEvent"):
        hook(*events)


def test_a_condition_may_be_a_method():
    class OnlyFirst(BaseHook):
        events = (HookEvent.STEP_END,)

        def __init__(self):  # does not call the base's: class attributes suffice
            self.seen = []

        def condition(self, context):
            return context.step == 1

        def execute(self, context):
            self.seen.append(context.step)

    only_first = OnlyFirst()
    manager = HookManager([only_first])
    for step in (1, 2):
        manager.fire(HookContext(HookEvent.STEP_END, step=step))
    assert only_first.seen == [1]


def test_importing_hooks_imports_no_event_loop():
    script = "import sys, ckpt_core.hooks; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
