"""BACKGROUND hooks: off the calling thread, in order, bounded, drained."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ckpt_core.hooks import BaseHook, HookContext, HookEvent, HookManager, HookOutcome, HookPriority, hook

LONG = 60.0


def at(step):
    return HookContext(HookEvent.STEP_END, step=step)


def background(name="late", *events, **options):
    return hook(*(events or (HookEvent.STEP_END,)), name=name, priority=HookPriority.BACKGROUND, **options)


@pytest.fixture
def gate():
    """Opened at the end whatever happens, so that no worker outlives its test."""
    event = threading.Event()
    yield event
    event.set()


def test_a_background_hook_does_not_keep_the_caller(gate):
    seen = []

    @background("late")
    def late(context):
        gate.wait(LONG)
        seen.append((context.step, threading.current_thread()))

    manager = HookManager([late])
    assert manager.fire(at(1)) == HookOutcome()
    assert seen == []
    gate.set()
    assert manager.drain(LONG)
    ((step, thread),) = seen
    assert step == 1
    assert thread is not threading.current_thread()
    assert thread.daemon


def test_background_calls_run_in_order_on_one_thread(gate):
    seen, threads = [], set()

    def noting(name):
        @background(name)
        def note(context):
            gate.wait(LONG)
            seen.append((context.step, name))
            threads.add(threading.get_ident())

        return note

    manager = HookManager([noting("a"), noting("b")])
    for step in range(5):
        manager.fire(at(step))
    gate.set()
    assert manager.drain(LONG)
    assert seen == [(step, name) for step in range(5) for name in ("a", "b")]
    assert len(threads) == 1


def test_foreground_hooks_come_first_whatever_the_order_of_registration(gate):
    seen = []

    @background()
    def late(context):
        gate.wait(LONG)
        seen.append("background")

    manager = HookManager(
        [late, hook(HookEvent.STEP_END, priority=HookPriority.LOW)(lambda c: seen.append("low"))]
    )
    manager.fire(at(1))
    gate.set()
    assert manager.drain(LONG)
    assert seen == ["low", "background"]


def test_the_thread_ends_with_the_work():
    threads = []
    manager = HookManager([background()(lambda c: threads.append(threading.current_thread()))])
    for _ in range(2):
        manager.fire(at(1))
        assert manager.drain(LONG)
        threads[-1].join(LONG)
        assert not threads[-1].is_alive()
    assert threads[0] is not threads[1]


def test_the_condition_is_asked_when_the_event_happens():
    asked, seen = [], []

    def condition(context):
        asked.append(threading.current_thread())
        return context.step == 2

    manager = HookManager([background(condition=condition)(lambda c: seen.append(c.step))])
    for step in (1, 2, 3):
        manager.fire(at(step))
    assert manager.drain(LONG)
    assert seen == [2]
    assert set(asked) == {threading.current_thread()}


def test_what_overflows_is_counted_and_logged(gate, caplog):
    seen, begun = [], threading.Event()

    @background("late")
    def late(context):
        begun.set()
        gate.wait(LONG)
        seen.append(context.step)

    manager = HookManager([late], background_limit=2)
    manager.fire(at(0))
    assert begun.wait(LONG)  # the worker has taken it; two more fit into the queue
    for step in (1, 2, 3, 4):
        manager.fire(at(step))
    gate.set()
    assert manager.drain(LONG)
    assert seen == [0, 1, 2]
    counted = manager.statistics()["late"]
    assert (counted.calls, counted.dropped) == (3, 2)
    assert caplog.text.count("hook late was not run on STEP_END") == 2


def test_failures_are_isolated_counted_and_logged(caplog):
    seen = []
    manager = HookManager(
        [background("bad")(lambda c: 1 / 0), background("next")(lambda c: seen.append(c.step))]
    )
    manager.fire(at(1))
    assert manager.drain(LONG)
    assert seen == [1]
    assert manager.statistics()["bad"].failures == 1
    assert "ZeroDivisionError" in caplog.text


def test_an_exit_in_the_background_is_a_failure(caplog):
    seen = []

    @background("leaving")
    def leaving(context):
        raise SystemExit(3)

    manager = HookManager([leaving, background("next")(lambda c: seen.append(c.step))])
    manager.fire(at(1))
    assert manager.drain(LONG)
    assert seen == [1]
    counted = manager.statistics()["leaving"]
    assert (counted.calls, counted.failures) == (1, 1)
    assert "SystemExit" in caplog.text


def test_background_hooks_have_time_limits_too(gate):
    threads = []

    @background("slow", timeout=0.01)
    def slow(context):
        threads.append(threading.current_thread())
        gate.wait(LONG)

    manager = HookManager([slow])
    manager.fire(at(1))
    manager.fire(at(2))  # the first call is not yet known to be stuck, or is: dropped either way
    assert manager.drain(LONG)
    counted = manager.statistics()["slow"]
    assert (counted.calls, counted.timeouts, counted.dropped) == (1, 1, 1)
    gate.set()
    for thread in threads:
        thread.join(LONG)


def test_asynchronous_background_hooks():
    seen = []

    @background()
    async def late(context):
        await asyncio.sleep(0)
        seen.append(context.step)

    manager = HookManager([late])
    manager.fire(at(1))
    assert manager.drain(LONG)
    assert seen == [1]


def test_a_background_hook_can_neither_veto_nor_ask_for_a_save(caplog):
    manager = HookManager(
        [
            background("false", HookEvent.BEFORE_SAVE)(lambda c: False),
            background("veto", HookEvent.BEFORE_SAVE)(lambda c: c.veto("no")),
            background("request", HookEvent.BEFORE_SAVE)(lambda c: c.request_save("please")),
        ]
    )
    context = HookContext(HookEvent.BEFORE_SAVE)
    assert manager.fire(context) == HookOutcome()
    assert manager.drain(LONG)
    assert {name: (each.failures, each.vetoes) for name, each in manager.statistics().items()} == {
        "false": (0, 0),
        "veto": (1, 0),
        "request": (1, 0),
    }
    assert context.save_requests == ()


def test_drain_says_when_time_was_not_enough(gate):
    manager = HookManager([background()(lambda c: gate.wait(LONG))])
    assert manager.drain(0)
    manager.fire(at(1))
    assert not manager.drain(0)
    gate.set()
    assert manager.drain(LONG)


def test_close_drains_and_then_takes_no_more(caplog):
    seen = []
    manager = HookManager(
        [
            background("late")(lambda c: seen.append(c.step)),
            hook(HookEvent.STEP_END)(lambda c: seen.append("now")),
        ]
    )
    manager.fire(at(1))
    assert manager.close(LONG)
    assert sorted(seen, key=str) == [1, "now"]
    manager.fire(at(2))
    assert sorted(seen, key=str) == [1, "now", "now"]
    assert manager.statistics()["late"].dropped == 1
    assert "was not run" in caplog.text
    assert manager.close()


def test_close_gives_up_on_what_hangs(gate, caplog):
    seen, begun = [], threading.Event()

    @background("late")
    def late(context):
        begun.set()
        gate.wait(LONG)
        seen.append(context.step)

    manager = HookManager([late])
    for step in (1, 2, 3):
        manager.fire(at(step))
    assert begun.wait(LONG)
    assert not manager.close(0)
    assert manager.statistics()["late"].dropped == 2
    assert caplog.text.count("closed before its turn") == 2
    gate.set()
    assert manager.close(LONG)
    assert seen == [1]


def test_a_background_hook_that_drains_or_closes_does_not_wait_for_itself():
    answers = []
    manager = HookManager()
    manager.register_hook(background("late")(lambda c: answers.extend([manager.drain(), manager.close()])))
    manager.fire(at(1))
    assert manager.drain(LONG)
    assert answers == [False, False]


def test_queued_calls_of_a_hook_that_left_still_run(gate):
    seen = []

    @background("late")
    def late(context):
        gate.wait(LONG)
        seen.append(context.step)

    manager = HookManager([late])
    manager.fire(at(1))
    manager.unregister_hook(late)
    gate.set()
    assert manager.drain(LONG)
    assert seen == [1]


def test_a_system_without_threads_left_drops_the_call(monkeypatch, caplog):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    manager = HookManager([background("late")(lambda c: None)])
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert manager.fire(at(1)) == HookOutcome()
    assert manager.statistics()["late"].dropped == 1
    assert manager.drain(0)


class Attached(BaseHook):
    events = (HookEvent.STEP_END,)

    def __init__(self, told, **options):
        super().__init__(**options)
        self.told = told

    def execute(self, context):
        self.told.append(context.step)

    def detach(self):
        self.told.append("over")


@pytest.mark.parametrize("priority", list(HookPriority))
def test_one_that_is_unregistered_is_told_that_it_is_over_once(priority):
    manager, told = HookManager(), []
    manager.serve("the manager")
    hook = manager.register_hook(Attached(told, priority=priority))
    manager.fire(at(1))
    manager.unregister_hook(hook)
    assert manager.drain(LONG)
    assert told == [1, "over"]
    manager.close()
    assert told == [1, "over"]


def test_one_that_was_never_told_whose_it_is_is_not_told_that_it_is_over():
    told = []
    manager = HookManager([Attached(told, name="a")])
    manager.unregister_hook("a")
    assert told == []


@pytest.mark.parametrize("closed", [False, True])
def test_what_is_queued_of_one_that_is_unregistered_comes_before_its_end(gate, closed):
    begun, told = threading.Event(), []

    @background("first")
    def first(context):
        begun.set()
        gate.wait(LONG)

    manager = HookManager([first], background_limit=2)
    manager.serve("the manager")
    hook = manager.register_hook(Attached(told, priority=HookPriority.BACKGROUND))
    manager.fire(at(1))
    assert begun.wait(LONG)  # it holds the worker: the second waits, with whatever comes after it
    manager.fire(at(2))  # and with the first's next call the queue is full
    manager.unregister_hook(hook)
    assert told == []
    if closed:
        assert not manager.close(timeout=0)
        assert told == ["over"]  # calls whose turn does not come are dropped, the end is not
    gate.set()
    assert manager.drain(LONG)
    assert told == (["over"] if closed else [1, "over"])


def test_an_end_that_fails_is_told_and_keeps_nobody_from_going_on(caplog):
    class Raises(Attached):
        def detach(self):
            raise OSError("the server is away")

    manager = HookManager()
    manager.serve("the manager")
    manager.unregister_hook(manager.register_hook(Raises([])))
    assert manager.hooks() == []
    assert "hook Raises did not end well: OSError('the server is away')" in caplog.text
