"""A session over a real manager: resume, requests and safe points, preemption, the end. No framework."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import (
    BaseHook,
    CheckpointManager,
    CorruptionError,
    EverySteps,
    HookContext,
    HookEvent,
    HookPriority,
    SaveFailedError,
    Session,
    StateError,
    StoreError,
    hook,
)
from ckpt_core.preemption import PreemptionSignals


@pytest.fixture
def manager(store_path: Path) -> Iterator[CheckpointManager]:
    with CheckpointManager(
        store_path, experiment="test", save_policy=EverySteps(2), metric="loss"
    ) as manager:
        yield manager


def trained(session: Session, steps: int, begin: int = 0, finish: bool = True) -> None:
    """Some steps of a training whose state is their number."""
    session.begin(begin)
    for step in range(begin + 1, begin + steps + 1):
        session.step_end(step, 0, {"loss": 1 / step})
        session.safe_point(step, 0, state_of(step))
    if finish:
        session.finish(begin + steps, 0, state_of(begin + steps))
    session.manager.wait()
    session.close()


def state_of(step: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"step": step, "weights": np.full(4, step)}


class Heard(BaseHook):
    """Every event of training, and nothing of saving."""

    events = (
        HookEvent.TRAIN_BEGIN, HookEvent.EPOCH_BEGIN, HookEvent.STEP_END, HookEvent.EVALUATE_END,
        HookEvent.EPOCH_END, HookEvent.TRAIN_END, HookEvent.TRAIN_FAILED, HookEvent.PREEMPTED,
    )  # fmt: skip

    def __init__(self, request: HookEvent | None = None) -> None:
        super().__init__()
        self.heard: list[HookContext] = []
        self.wanted = request

    def execute(self, context: HookContext) -> None:
        self.heard.append(context)
        if context.event is self.wanted:
            context.request_save("a hook wants it")

    @property
    def names(self) -> list[str]:
        return [context.event.name for context in self.heard]


def steps(manager: CheckpointManager) -> list[int]:
    return [checkpoint.step for checkpoint in manager.checkpoints()]


# -- resume -------------------------------------------------------------------------------------------


def test_a_fresh_start_a_resume_and_a_new_attempt(
    manager: CheckpointManager, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ckpt_core.session")
    first = Session(manager)
    assert first.resume().kind == "fresh"
    assert "a fresh start" in caplog.text
    trained(first, 4, finish=False)

    second = Session(manager)
    found = second.resume("auto")
    assert (found.kind, found.step) == ("resumed", 4)
    assert found.state is not None
    assert found.state["step"] == 4
    assert "session" not in found.state
    assert found.checkpoint is not None
    assert manager.attempt.lineage == found.checkpoint.attempt.lineage
    assert "step 4, saved by attempt 1; this is attempt 2" in caplog.text
    trained(second, 1, begin=4)

    third = Session(manager)
    found = third.resume(None)
    assert (found.kind, found.step, found.state) == ("new-attempt", 0, None)
    assert manager.attempt.number == 3
    assert manager.attempt.lineage == manager.attempt.id
    assert "attempt 3 starts from nothing" in caplog.text


def test_a_reference_is_resumed(manager: CheckpointManager) -> None:
    trained(Session(manager), 6)
    found = Session(manager).resume("step=4")
    assert (found.kind, found.step) == ("resumed", 4)
    assert manager.attempt.resumed_step == 4


def test_what_came_to_its_end_is_complete_and_not_saved_again(
    manager: CheckpointManager, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ckpt_core.session")
    trained(Session(manager), 3)
    assert steps(manager) == [2, 3]
    again = Session(manager)
    assert again.resume().kind == "complete"
    again.nothing_to_do()
    again.finish(3, 0, state_of(3))
    again.finish(3, 0, state_of(3))
    assert steps(manager) == [2, 3]
    assert "already complete at step 3: nothing to do" in caplog.text


# -- saves --------------------------------------------------------------------------------------------


def test_a_request_waits_for_the_next_safe_point(manager: CheckpointManager) -> None:
    session = Session(manager)
    session.resume()
    session.begin(0)
    session.step_end(1)
    assert not session.due
    assert session.safe_point(1, 0, state_of(1)) is None
    session.step_end(2)
    session.request("asked for")
    assert session.due
    assert steps(manager) == []
    handle = session.safe_point(2, 0, state_of(2))
    assert handle is not None
    checkpoint = handle.result()
    assert not session.due
    manifest = manager.workspace.repository.read(checkpoint.key).manifest
    assert manifest.writer["reason"] == "every 2 steps; asked for"
    session.close()


def test_events_carry_the_metrics_of_their_own_step(manager: CheckpointManager) -> None:
    heard = Heard(request=HookEvent.EVALUATE_END)
    manager.hooks.register_hook(heard)
    session = Session(manager)
    session.resume()
    session.begin(0, 0)
    session.epoch_begin(0, 0)
    session.step_end(1, 0, {"loss": 0.5})
    session.evaluate_end(1, 0, {"val": 2})
    handle = session.safe_point(1, 0, state_of(1))
    session.epoch_end(1, 0)
    session.step_end(2, 1)
    session.finish(2, 1, state_of(2))
    session.close()
    assert heard.names == [
        "TRAIN_BEGIN", "EPOCH_BEGIN", "STEP_END", "EVALUATE_END", "EPOCH_END", "STEP_END", "TRAIN_END",
    ]  # fmt: skip
    assert [dict(context.metrics) for context in heard.heard[2:6]] == [
        {"loss": 0.5}, {"loss": 0.5, "val": 2.0}, {"loss": 0.5, "val": 2.0}, {},
    ]  # fmt: skip
    assert handle is not None
    assert handle.result().metrics == {"loss": 0.5, "val": 2.0}
    latest = manager.latest()
    assert latest is not None
    assert latest.metrics == {}


def test_a_metric_that_is_no_number_costs_no_checkpoint(
    manager: CheckpointManager, caplog: pytest.LogCaptureFixture
) -> None:
    session = Session(manager)
    session.step_end(2, 0, {"loss": float("nan"), "other": 1.0})
    handle = session.safe_point(2, 0, state_of(2))
    assert handle is not None
    assert handle.result().metrics == {"other": 1.0}
    assert "loss is NaN at step 2" in caplog.text


def test_the_first_save_that_cannot_be_made_is_raised_later_ones_are_logged(
    manager: CheckpointManager, caplog: pytest.LogCaptureFixture
) -> None:
    session = Session(manager)
    session.step_end(2)
    with pytest.raises(StateError, match="bad"):
        session.safe_point(2, 0, lambda: {"bad": object()})
    session.step_end(4)
    assert session.safe_point(4, 0, state_of(4)) is not None
    session.step_end(6)
    assert session.safe_point(6, 0, lambda: {"bad": object()}) is None
    assert "the save of step 6 failed" in caplog.text
    session.finish(6, 0, state_of(6))
    assert steps(manager) == [4, 6]


def test_the_last_save_is_made_again_if_it_failed(manager: CheckpointManager) -> None:
    failing = [StoreError("full", kind="full")]

    class Full(BaseHook):
        events = (HookEvent.BEFORE_SAVE,)
        on_error = "raise"

        def execute(self, context: HookContext) -> None:
            if failing:
                raise failing.pop()

    manager.hooks.register_hook(Full())
    session = Session(manager)
    session.step_end(2)
    handle = session.safe_point(2, 0, state_of(2), finished=True)
    assert handle is not None
    assert handle.exception() is not None
    session.finish(2, 0, state_of(2))
    assert steps(manager) == [2]


def test_a_save_at_the_very_end_is_not_made_twice(manager: CheckpointManager) -> None:
    session = Session(manager)
    session.step_end(2)
    session.safe_point(2, 0, state_of(2), finished=True)
    session.finish(2, 0, state_of(2))
    assert steps(manager) == [2]
    assert Session(manager).resume().kind == "complete"


# -- damage, and saves that fail ----------------------------------------------------------------------


def test_where_nothing_can_be_read_nothing_begins_anew_unasked(store_path: Path) -> None:
    with CheckpointManager(store_path, experiment="test") as manager:
        trained(Session(manager), 2)
    for name in ("catalog.db", "catalog.db-wal", "catalog.db-shm"):
        (store_path / name).unlink(missing_ok=True)
    (manifest,) = (store_path / "checkpoints").rglob("*.json")
    manifest.write_bytes(manifest.read_bytes()[:-20])
    with CheckpointManager(store_path, experiment="test") as manager:
        with pytest.raises(CorruptionError, match="manifest of every checkpoint is damaged"):
            Session(manager).resume()
        assert Session(manager).resume(None).kind == "fresh"


@pytest.mark.parametrize("on_save_error", ["report", "raise", "stop"])
def test_a_failed_save_is_raised_when_it_was_asked_for(store_path: Path, on_save_error: Any) -> None:
    class Full(BaseHook):
        events = (HookEvent.BEFORE_SAVE,)
        on_error = "raise"

        def execute(self, context: HookContext) -> None:
            if context.step == 4:
                raise StoreError("full", kind="full")

    with CheckpointManager(
        store_path, experiment="test", save_policy=EverySteps(2), hooks=[Full()], on_save_error=on_save_error
    ) as manager:
        session = Session(manager)
        made = 0
        error: Exception | None = None
        try:
            for step in range(1, 8):
                session.step_end(step)
                handle = session.safe_point(step, 0, state_of(step))
                if handle is not None:
                    handle.exception(60)
                made = step
            session.finish(7, 0, state_of(7))
        except SaveFailedError as caught:
            error = caught
        assert (error is not None) == (on_save_error != "report")
        assert made == (4 if on_save_error == "stop" else 7)
        assert steps(manager) == ([2] if on_save_error == "stop" else [2, 6, 7])


# -- exceptions ---------------------------------------------------------------------------------------


def test_an_exception_saves_only_at_a_safe_point(manager: CheckpointManager) -> None:
    heard = Heard()
    manager.hooks.register_hook(heard)
    error = RuntimeError("on purpose")
    session = Session(manager)
    session.step_end(1)
    session.fail(error, 1, 0)
    assert steps(manager) == []
    assert heard.heard[-1].event is HookEvent.TRAIN_FAILED
    assert heard.heard[-1].error is error

    session = Session(manager)
    session.step_end(1)
    session.fail(error, 1, 0, state_of(1))
    assert steps(manager) == [1]
    assert Session(manager).resume().kind == "resumed"


def test_a_save_that_fails_then_does_not_hide_the_exception(
    manager: CheckpointManager, caplog: pytest.LogCaptureFixture
) -> None:
    session = Session(manager)
    session.step_end(1)
    session.fail(RuntimeError("on purpose"), 1, 0, lambda: {"bad": object()})
    assert "no save after RuntimeError" in caplog.text


# -- preemption ---------------------------------------------------------------------------------------


@pytest.fixture
def disposition() -> Iterator[Callable[[Any], None]]:
    """Sets the disposition of SIGUSR1 for one test."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, handler) and None
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_saves_and_then_calls_the_earlier_handler(
    manager: CheckpointManager, disposition: Callable[[Any], None]
) -> None:
    called: list[Any] = []
    disposition(lambda number, frame: called.append((number, steps(manager))))
    heard = Heard()
    manager.hooks.register_hook(heard)
    session = Session(manager)
    session.resume()
    session.begin(0)
    session.step_end(1)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert session.preempted is signal.SIGUSR1
    assert session.due
    assert called == []
    session.safe_point(1, 0, state_of(1))
    assert called == [(signal.SIGUSR1, [1])], "durable before the handler is called"
    assert heard.heard[-1].reason == "SIGUSR1"
    assert session.preempted is None

    os.kill(os.getpid(), signal.SIGUSR1)
    session.safe_point(1, 0, state_of(1))
    assert called[1:] == [(signal.SIGUSR1, [1])], "nothing has changed since: nothing to save"
    session.close()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert len(called) == 3, "given back"


@pytest.mark.parametrize("raised", [SystemExit(0), KeyboardInterrupt(), RuntimeError("preempted")])
def test_a_handler_that_raises_ends_a_training_that_was_preempted(
    manager: CheckpointManager, disposition: Callable[[Any], None], raised: BaseException
) -> None:
    def end(number: int, frame: Any) -> None:
        if steps(manager) == [1, 2]:
            raise raised

    disposition(end)
    heard = Heard()
    manager.hooks.register_hook(heard)
    session = Session(manager)
    session.resume()
    session.begin(0)
    for step in (1, 2):
        session.step_end(step)
        os.kill(os.getpid(), signal.SIGUSR1)
        if step == 1:
            session.safe_point(1, 0, state_of(1))
    with pytest.raises(type(raised)) as caught:
        session.safe_point(2, 0, state_of(2))
    session.fail(caught.value, 2, 0)
    session.close()
    last = heard.heard[-1]
    assert (last.event, last.error, dict(last.data)) == (
        HookEvent.TRAIN_FAILED, raised, {"preempted": "SIGUSR1"}
    )  # fmt: skip
    attempt = manager.workspace.facts.experiments("test")[0].attempts[-1]
    assert (attempt.outcome, attempt.reason) == ("preempted", "SIGUSR1")


def test_what_fails_after_a_handler_has_returned_is_no_preemption(
    manager: CheckpointManager, disposition: Callable[[Any], None]
) -> None:
    disposition(lambda number, frame: None)
    heard = Heard()
    manager.hooks.register_hook(heard)
    session = Session(manager)
    session.begin(0)
    session.step_end(1)
    os.kill(os.getpid(), signal.SIGUSR1)
    session.safe_point(1, 0, state_of(1))
    session.fail(ValueError("another matter"), 1, 0)
    session.close()
    assert (heard.heard[-1].event, dict(heard.heard[-1].data)) == (HookEvent.TRAIN_FAILED, {})


def test_hooks_in_the_background_are_done_before_the_signal_takes_its_course(
    manager: CheckpointManager, disposition: Callable[[Any], None]
) -> None:
    told: list[str] = []
    over = threading.Event()

    def end(number: int, frame: Any) -> None:
        told.append("over")
        over.set()

    @hook(HookEvent.PREEMPTED, priority=HookPriority.BACKGROUND)
    def tell(context: HookContext) -> None:
        over.wait(0.2)  # which must not come
        told.append("told")

    disposition(end)

    manager.hooks.register_hook(tell)
    session = Session(manager)
    session.begin(0)
    session.step_end(1)
    os.kill(os.getpid(), signal.SIGUSR1)
    session.safe_point(1, 0, state_of(1))
    session.close()
    assert told == ["told", "over"]


def test_an_ignored_signal_is_ignored_once_it_has_saved(
    manager: CheckpointManager, disposition: Callable[[Any], None]
) -> None:
    disposition(signal.SIG_IGN)
    session = Session(manager)
    session.begin(0)
    session.step_end(1)
    os.kill(os.getpid(), signal.SIGUSR1)
    session.safe_point(1, 0, state_of(1))
    assert steps(manager) == [1]
    session.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_a_signal_that_comes_at_the_end_still_takes_its_course(
    manager: CheckpointManager, disposition: Callable[[Any], None]
) -> None:
    called: list[int] = []
    disposition(lambda number, frame: called.append(number))
    session = Session(manager)
    session.begin(0)
    session.step_end(1)
    os.kill(os.getpid(), signal.SIGUSR1)
    session.finish(1, 0, state_of(1))
    assert called == [signal.SIGUSR1]
    session.close()


def test_a_second_signal_does_not_wait(disposition: Callable[[Any], None]) -> None:
    called: list[int] = []
    disposition(lambda number, frame: called.append(number))
    signals = PreemptionSignals([signal.SIGUSR1])
    signals.install()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert called == []
    os.kill(os.getpid(), signal.SIGUSR1)
    assert called == [signal.SIGUSR1]
    signals.uninstall()


def test_somebody_elses_later_handler_stays(disposition: Callable[[Any], None]) -> None:
    disposition(signal.SIG_IGN)
    signals = PreemptionSignals([signal.SIGUSR1])
    signals.install()

    def later(number: int, frame: Any) -> None:
        pass

    signal.signal(signal.SIGUSR1, later)
    signals.uninstall()
    assert signal.getsignal(signal.SIGUSR1) is later


def test_not_in_the_main_thread(disposition: Callable[[Any], None]) -> None:
    disposition(signal.SIG_IGN)
    signals = PreemptionSignals([signal.SIGUSR1])
    thread = threading.Thread(target=signals.install)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


@pytest.mark.parametrize("earlier", ["default", "forked"])
def test_the_default_action_ends_the_process_with_the_signals_status(earlier: str) -> None:
    child = os.fork()
    if not child:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        signals = PreemptionSignals([signal.SIGUSR1])
        signals.install()
        if earlier == "forked" and (grandchild := os.fork()):
            # A child of the training inherits the handler, but the signal is not for the training.
            _, status = os.waitpid(grandchild, 0)
            os._exit(0 if os.WIFSIGNALED(status) and signals.received is None else 1)
        os.kill(os.getpid(), signal.SIGUSR1)
        signals.pass_on()
        os._exit(3)
    _, status = os.waitpid(child, 0)
    if earlier == "default":
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGUSR1
    else:
        assert os.WIFEXITED(status)
        assert os.WEXITSTATUS(status) == 0
