"""What fails again and again is left out for a while, and tried again."""

from __future__ import annotations

import logging

import pytest

from ckpt_core import BaseHook, CheckpointManager, HookEvent, HookPriority, UsageError, clock
from ckpt_core.hooks import HookContext, HookManager
from ckpt_core.hooks.circuit import LONGEST, Circuit


@pytest.fixture
def wait(monkeypatch):
    """A clock that stands still; `wait(seconds)` moves it."""
    times = [100.0]
    monkeypatch.setattr(clock, "monotonic", lambda: times[0])

    def move(seconds):
        times[0] += seconds

    return move


class Flaky(BaseHook):
    name = "flaky"
    events = (HookEvent.STEP_END,)

    def __init__(self, **facts):
        super().__init__(**facts)
        self.broken = True
        self.calls = 0

    def execute(self, context):
        self.calls += 1
        if self.broken:
            raise ConnectionError("no route")


def fire(manager, times=1):
    return [manager.fire(HookContext(HookEvent.STEP_END, step=step)) for step in range(times)]


def test_it_opens_after_failures_in_a_row_and_tries_once(wait):
    circuit = Circuit(3, 10)
    for _ in range(2):
        assert circuit.admits()
        assert not circuit.failed()
    assert circuit.admits()
    assert circuit.failed()
    assert (circuit.state, circuit.admits()) == ("open", False)
    wait(9.9)
    assert not circuit.admits()
    wait(0.1)
    assert circuit.state == "half-open"
    assert circuit.admits()
    assert not circuit.admits()  # one trial at a time
    assert circuit.succeeded()
    assert circuit.state == "closed"


def test_a_success_in_between_begins_the_count_anew(wait):
    circuit = Circuit(2, 10)
    for _ in range(5):
        assert not circuit.failed()
        assert not circuit.succeeded()
    assert circuit.state == "closed"


def test_a_trial_that_fails_opens_it_for_twice_as_long_up_to_an_hour(wait):
    circuit = Circuit(1, 1000)
    assert circuit.failed()
    waits = []
    for _ in range(4):
        waits.append(circuit.seconds)
        wait(circuit.seconds)
        assert circuit.admits()
        assert circuit.failed()
    assert waits == [1000, 2000, LONGEST, LONGEST]
    wait(LONGEST)
    assert circuit.admits()
    assert circuit.succeeded()
    assert circuit.failed()
    assert circuit.seconds == 1000  # what went before is forgotten


def test_a_call_that_was_not_made_leaves_the_trial_to_the_next(wait):
    circuit = Circuit(1, 10)
    circuit.failed()
    wait(10)
    assert circuit.admits()
    circuit.undecided()
    assert circuit.admits()


def test_a_call_that_began_earlier_and_fails_late_opens_nothing_anew(wait):
    circuit = Circuit(1, 10)
    assert circuit.failed()
    assert not circuit.failed()
    assert circuit.seconds == 10


def test_the_hook_is_left_out_and_comes_back(wait, caplog):
    hook, told = Flaky(), []
    manager = HookManager([hook])
    manager.serve(None, lambda *facts: told.append(facts))
    fire(manager, 8)
    counts = manager.statistics()["flaky"]
    assert (hook.calls, counts.failures, counts.skipped, counts.circuit) == (5, 5, 3, "open")
    assert counts.last_error == "raised ConnectionError('no route') on STEP_END at step 4"
    assert "hook flaky fails again and again: it is left out for 60 s" in caplog.text
    wait(60)
    hook.broken = False
    fire(manager, 2)
    assert manager.statistics()["flaky"].circuit == "closed"
    assert hook.calls == 7
    assert "hook flaky works again" in caplog.text
    assert told == [
        ("flaky", "left-out", "raised ConnectionError('no route') on STEP_END at step 4"),
        ("flaky", "works-again", "on STEP_END"),
    ]


def test_a_condition_that_says_no_uses_up_no_trial(wait):
    hook = Flaky(max_failures=1, condition=lambda context: context.step != 0)
    manager = HookManager([hook])
    fire(manager, 2)
    wait(60)
    hook.broken = False
    fire(manager, 1)
    assert manager.statistics()["flaky"].circuit == "half-open"
    fire(manager, 2)
    assert manager.statistics()["flaky"].circuit == "closed"


def test_conditions_that_raise_open_it_too(wait):
    hook = Flaky(max_failures=2, condition=lambda context: 1 / 0)
    manager = HookManager([hook])
    assert [len(outcome.failures) for outcome in fire(manager, 4)] == [1, 1, 0, 0]


def test_what_is_to_be_heard_is_never_left_out(wait):
    from ckpt_core.errors import HookError

    manager = HookManager([Flaky(on_error="raise", max_failures=1)])
    for _ in range(3):
        with pytest.raises(HookError):
            fire(manager)


def test_never_is_a_choice_of_a_class(wait):
    class Stubborn(Flaky):
        max_failures = None

    hook = Stubborn()
    fire(HookManager([hook]), 20)
    assert hook.calls == 20


def test_a_hook_in_the_background_is_left_out_too(wait):
    hook = Flaky(priority=HookPriority.BACKGROUND, max_failures=2)
    manager = HookManager([hook])
    for _ in range(5):
        fire(manager)
        manager.drain(10)
    assert hook.calls == 2


@pytest.mark.parametrize("where", ["execute", "condition"])
def test_an_interrupt_decides_nothing(wait, where):
    def interrupted(context):
        if hook.broken is None:
            raise KeyboardInterrupt
        return True

    hook = Flaky(max_failures=1, condition=interrupted if where == "condition" else None)
    plain = hook.execute
    hook.execute = lambda context: interrupted(context) and plain(context)
    manager = HookManager([hook])
    fire(manager)
    wait(60)
    hook.broken = None
    with pytest.raises(KeyboardInterrupt):
        fire(manager)
    assert manager.statistics()[hook.name].circuit == "half-open"
    hook.broken = False
    fire(manager)
    assert manager.statistics()[hook.name].circuit == "closed"


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"max_failures": 0}, "max_failures"),
        ({"max_failures": 1.5}, "max_failures"),
        ({"max_failures": True}, "max_failures"),
        ({"retry_after": 0}, "retry_after"),
        ({"retry_after": float("inf")}, "retry_after"),
        ({"retry_after": "1"}, "retry_after"),
    ],
)
def test_nonsense_is_refused(facts, said):
    with pytest.raises(UsageError, match=said):
        HookManager([Flaky(**facts)])


def test_the_audit_trail_says_so(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    with CheckpointManager(tmp_path / "s", experiment="e", hooks=[Flaky(max_failures=1)]) as manager:
        manager.hooks.fire(HookContext(HookEvent.STEP_END, step=3))
        entry = manager.workspace.index.catalog().audit_log(1)[0]
    assert (entry.event, entry.subject, entry.outcome) == ("hook", "flaky", "left-out")
    assert entry.detail["experiment"] == "e"
    assert "no route" in entry.detail["reason"]


def test_each_attempt_says_once_which_hooks_are_at_work(tmp_path):
    with CheckpointManager(tmp_path / "s", experiment="e", hooks=[Flaky()]) as manager:
        for _ in range(2):
            manager.begin_attempt(manager.latest())
            for step in (1, 2):
                manager.save({"w": 1}, step=manager.attempt.number * 10 + step, wait=True)
        trail = manager.workspace.index.catalog().audit_log()
    said = [(each.outcome, each.detail["attempt"]) for each in reversed(trail) if each.event == "hooks"]
    assert said == [("begun", 1), ("begun", 2)]
