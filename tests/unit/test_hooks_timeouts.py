"""Time limits and asynchronous hooks. Hooks that overrun wait for an event of the test, never for time."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading

import pytest

from ckpt_core.errors import HookError
from ckpt_core.hooks import BaseHook, HookContext, HookEvent, HookManager, HookOutcome, calling, hook

SOON = 0.01
ENOUGH_TO_BEGIN = 0.25
NEVER = 60.0
STEP = HookContext(HookEvent.STEP_END, step=7)


class Hanging:
    """A hook function that hangs until it is released, and notes that it has ended."""

    def __init__(self):
        self.begun, self.released, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.threads = []

    def __call__(self, context):
        self.threads.append(threading.current_thread())
        self.begun.set()
        self.released.wait(NEVER)
        context.request_save("too late")
        self.ended.set()
        return False

    def release(self):
        self.released.set()
        for thread in self.threads:
            thread.join(NEVER)


@pytest.fixture
def hanging():
    made = Hanging()
    yield made
    made.release()


def test_a_hook_within_its_limit_answers_as_usual():
    guard = hook(HookEvent.BEFORE_SAVE, name="guard", timeout=NEVER)(lambda context: context.veto("full"))
    outcome = HookManager([guard]).fire(HookContext(HookEvent.BEFORE_SAVE))
    assert outcome == HookOutcome(vetoed=True, reasons=("guard: full",))


def test_a_hook_that_raises_within_its_limit_is_isolated():
    bad = hook(HookEvent.STEP_END, name="bad", timeout=NEVER)(lambda context: 1 / 0)
    (failure,) = HookManager([bad]).fire(STEP).failures
    assert (failure.kind, type(failure.error)) == ("raised", ZeroDivisionError)


def test_a_hook_that_overruns_is_left_behind(hanging, caplog):
    seen = []
    slow = hook(HookEvent.BEFORE_SAVE, name="slow", timeout=SOON)(hanging)
    manager = HookManager([slow, hook(HookEvent.BEFORE_SAVE)(seen.append)])
    context = HookContext(HookEvent.BEFORE_SAVE, step=7)
    outcome = manager.fire(context)
    assert not hanging.ended.is_set()
    assert [(failure.hook, failure.kind) for failure in outcome.failures] == [("slow", "timeout")]
    assert len(seen) == 1
    counted = manager.statistics()["slow"]
    assert (counted.calls, counted.timeouts, counted.failures) == (1, 1, 0)
    assert "slow ran past its time limit of 0.01 s on BEFORE_SAVE at step 7" in caplog.text
    # Its late answer, a veto and a request, changes nothing.
    with caplog.at_level(logging.INFO, "ckpt_core.hooks"):
        hanging.release()
    assert hanging.ended.is_set()
    assert (outcome.vetoed, context.save_requests) == (False, ())
    assert "ended after its time limit" in caplog.text


def test_what_a_hook_said_before_its_limit_counts():
    @hook(HookEvent.STEP_END, timeout=ENOUGH_TO_BEGIN)
    async def slow(context):
        context.request_save("in time")
        try:
            await asyncio.Event().wait()
        finally:
            context.request_save("cleaning up")

    context = HookContext(HookEvent.STEP_END)
    outcome = HookManager([slow]).fire(context)
    assert [failure.kind for failure in outcome.failures] == ["timeout"]
    assert outcome.save_requests[:1] == ("in time",)


def test_a_hook_that_is_stuck_is_not_called_again_until_it_ends(hanging, caplog):
    slow = hook(HookEvent.STEP_END, name="slow", timeout=SOON)(hanging)
    manager = HookManager([slow])
    manager.fire(STEP)
    assert hanging.begun.wait(NEVER)
    for _ in range(3):
        assert [failure.kind for failure in manager.fire(STEP).failures] == ["stuck"]
    counted = manager.statistics()["slow"]
    assert (counted.calls, counted.timeouts, counted.dropped, counted.failures) == (1, 1, 3, 0)
    assert len(hanging.threads) == 1
    assert "still running" in caplog.text
    hanging.release()
    manager.fire(STEP)
    assert manager.statistics()["slow"].calls == 2


def test_an_overrun_that_may_raise_does(hanging):
    manager = HookManager([hook(HookEvent.STEP_END, timeout=SOON, on_error="raise", name="slow")(hanging)])
    with pytest.raises(HookError, match=r"slow.*time limit of 0\.01 s") as caught:
        manager.fire(STEP)
    assert (caught.value.kind, caught.value.__cause__) == ("timeout", None)


def test_a_limit_needs_a_daemon_thread_and_nothing_else_does():
    seen = []

    def note(context):
        seen.append(threading.current_thread())

    manager = HookManager([hook(HookEvent.STEP_END, timeout=NEVER)(note), hook(HookEvent.STEP_END)(note)])
    manager.fire(STEP)
    helper, own = seen
    assert helper is not own
    assert helper.daemon
    assert own is threading.current_thread()


def test_a_helper_thread_sees_the_callers_context_variables():
    variable = contextvars.ContextVar("variable")
    variable.set("set by the caller")
    seen = []
    HookManager([hook(HookEvent.STEP_END, timeout=NEVER)(lambda c: seen.append(variable.get()))]).fire(STEP)
    assert seen == ["set by the caller"]


def test_a_timeout_error_of_the_hooks_own_is_no_overrun():
    @hook(HookEvent.STEP_END, timeout=NEVER)
    async def own(context):
        raise TimeoutError("of a socket")

    (failure,) = HookManager([own]).fire(STEP).failures
    assert (failure.kind, str(failure.error)) == ("raised", "of a socket")


# Asynchronous hooks


def test_an_asynchronous_hook_is_awaited():
    @hook(HookEvent.BEFORE_SAVE)
    async def guard(context):
        await asyncio.sleep(0)
        return context.veto("full")

    outcome = HookManager([guard]).fire(HookContext(HookEvent.BEFORE_SAVE))
    assert outcome.reasons == ("guard: full",)


def test_an_asynchronous_method_is_awaited():
    class Guard(BaseHook):
        events = (HookEvent.BEFORE_SAVE,)

        async def execute(self, context):
            await asyncio.sleep(0)
            return False

    assert HookManager([Guard()]).fire(HookContext(HookEvent.BEFORE_SAVE)).vetoed


def test_any_awaitable_is_awaited():
    class Later:
        def __await__(self):
            yield from asyncio.sleep(0).__await__()
            return False

    assert (
        HookManager([hook(HookEvent.BEFORE_SAVE)(lambda c: Later())])
        .fire(HookContext(HookEvent.BEFORE_SAVE))
        .vetoed
    )


def test_an_asynchronous_hook_without_a_limit_runs_on_the_calling_thread():
    seen = []

    @hook(HookEvent.STEP_END)
    async def note(context):
        seen.append(threading.current_thread())

    HookManager([note]).fire(STEP)
    assert seen == [threading.current_thread()]


def test_the_threads_own_event_loop_is_left_alone():
    mine = asyncio.new_event_loop()
    asyncio.set_event_loop(mine)
    try:

        @hook(HookEvent.STEP_END)
        async def note(context):
            assert asyncio.get_running_loop() is not mine

        assert HookManager([note]).fire(STEP).failures == ()
        assert asyncio.get_event_loop() is mine
        assert not mine.is_closed()
    finally:
        asyncio.set_event_loop(None)
        mine.close()


def test_an_asynchronous_hook_that_raises_is_isolated():
    @hook(HookEvent.STEP_END)
    async def bad(context):
        await asyncio.sleep(0)
        raise ValueError("broken")

    (failure,) = HookManager([bad]).fire(STEP).failures
    assert (failure.kind, str(failure.error)) == ("raised", "broken")


def test_an_asynchronous_hook_that_cancels_itself_is_isolated():
    @hook(HookEvent.STEP_END)
    async def bad(context):
        raise asyncio.CancelledError

    (failure,) = HookManager([bad]).fire(STEP).failures
    assert failure.kind == "raised"


@pytest.mark.parametrize("exit_", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("timeout", [None, NEVER])
def test_what_is_no_exception_goes_through_an_event_loop(exit_, timeout):
    @hook(HookEvent.STEP_END, timeout=timeout)
    async def leaving(context):
        raise exit_

    with pytest.raises(exit_):
        HookManager([leaving]).fire(STEP)


def test_an_asynchronous_hook_is_cancelled_at_its_limit():
    cancelled, cleaned = [], []

    @hook(HookEvent.STEP_END, timeout=ENOUGH_TO_BEGIN)
    async def slow(context):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    manager = HookManager([slow])
    outcome = manager.fire(STEP)
    assert [failure.kind for failure in outcome.failures] == ["timeout"]
    assert (cancelled, cleaned) == ([True], [True])
    # It has ended, so nothing is stuck: the next call is made.
    assert [failure.kind for failure in manager.fire(STEP).failures] == ["timeout"]
    assert manager.statistics()["slow"].timeouts == 2


def test_an_answer_after_a_cancellation_that_was_caught_is_late():
    @hook(HookEvent.BEFORE_SAVE, timeout=SOON)
    async def stubborn(context):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return False

    outcome = HookManager([stubborn]).fire(HookContext(HookEvent.BEFORE_SAVE))
    assert not outcome.vetoed
    assert [failure.kind for failure in outcome.failures] == ["timeout"]


def test_an_asynchronous_hook_that_blocks_is_left_behind(hanging, monkeypatch):
    monkeypatch.setattr(calling, "CANCEL_GRACE", SOON)

    @hook(HookEvent.STEP_END, timeout=SOON)
    async def blocking(context):
        hanging(context)

    manager = HookManager([blocking])
    assert [failure.kind for failure in manager.fire(STEP).failures] == ["timeout"]
    assert hanging.begun.wait(NEVER)
    assert [failure.kind for failure in manager.fire(STEP).failures] == ["stuck"]


@pytest.mark.parametrize("timeout", [None, NEVER])
def test_asynchronous_hooks_work_where_a_loop_runs_already(timeout):
    @hook(HookEvent.BEFORE_SAVE, timeout=timeout)
    async def guard(context):
        await asyncio.sleep(0)
        return context.veto("full")

    async def notebook_cell():
        return HookManager([guard]).fire(HookContext(HookEvent.BEFORE_SAVE))

    assert asyncio.run(notebook_cell()).reasons == ("guard: full",)


def test_an_asynchronous_hook_may_fire_another():
    manager = HookManager()

    @hook(HookEvent.STEP_END)
    async def outer(context):
        await asyncio.sleep(0)
        assert manager.fire(HookContext(HookEvent.NEW_BEST)).save_requests == ("inner",)

    @hook(HookEvent.NEW_BEST)
    async def inner(context):
        await asyncio.sleep(0)
        context.request_save("inner")

    manager.register_hook(outer)
    manager.register_hook(inner)
    assert manager.fire(STEP) == HookOutcome()
