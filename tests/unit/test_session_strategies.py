"""What a session does for policies and hooks: the learning rate, the loss, what is kept, what is remembered."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import (
    BaseHook,
    CheckpointManager,
    EverySteps,
    HookEvent,
    KeepLast,
    OnLearningRateDrop,
    OnLossSpike,
    OnPlateau,
    OnSignal,
    Session,
    hook,
)


class Loop:
    """A training whose rate, loss and evaluations are given by step."""

    def __init__(self, root: Path, resume: str = "auto", **options: Any) -> None:
        self.manager = CheckpointManager(root, experiment="loop", **options)
        self.session = Session(self.manager, signals=())
        self.rate = 0.1
        self.rates_read = 0
        self.session.learning_rate = self._read
        self.step = self.session.resume(resume).step
        self.session.begin(self.step)

    def _read(self) -> float:
        self.rates_read += 1
        return self.rate

    def make(self, loss: Any = None, **metrics: float) -> None:
        self.step += 1
        self.session.step_end(self.step, 0, metrics, loss=None if loss is None else lambda: loss)

    def safe_point(self) -> None:
        if self.session.due:
            self.session.safe_point(self.step, 0, lambda: {"w": np.full(3, self.step)})
            self.manager.wait()

    def go(self, steps: int, loss: Any = None) -> None:
        for _ in range(steps):
            self.make(loss)
            self.safe_point()

    def close(self) -> None:
        self.session.close()
        self.manager.close()

    @property
    def saved(self) -> list[tuple[int, str]]:
        read = self.manager.workspace.repository.read
        manifests = (read(each.key).manifest for each in self.manager.checkpoints())
        return [(each.step, each.writer["reason"]) for each in manifests]


@pytest.fixture
def loop(store_path: Path, request: Any) -> Any:
    loops: list[Loop] = []

    def make(**options: Any) -> Loop:
        loops.append(Loop(store_path, **options))
        return loops[-1]

    yield make
    for each in loops:
        each.close()


def test_a_rate_that_is_lowered_before_the_safe_point_is_noticed_there(loop: Any) -> None:
    training = loop(save_policy=OnLearningRateDrop(settle=2))
    training.go(3)
    training.make()
    training.rate = 0.01  # after the event, before the safe point: as a scheduler that looks at an evaluation
    training.safe_point()
    training.go(3)
    assert training.saved == [
        (4, "before the learning rate drops from 0.1 to 0.01"),
        (6, "2 steps after the learning rate dropped from 0.1 to 0.01"),
    ]


def test_the_rate_is_read_for_those_only_who_listen(loop: Any) -> None:
    training = loop(save_policy=EverySteps(2))
    training.go(4)
    assert training.rates_read == 0


def test_the_last_good_is_kept_from_retention(loop: Any, caplog: Any) -> None:
    training = loop(save_policy=OnLossSpike() | EverySteps(5), retention=[KeepLast(1)])
    training.go(12, 1.0)
    training.go(20, math.nan)
    good = training.manager.resolve("last-good")
    assert (good.step, good.pinned) == (10, True)
    assert [step for step, _ in training.saved] == [10, 30]
    assert "loss is nan: the checkpoint of step 10 is kept as 'last-good'" in caplog.text
    (entry,) = [
        each for each in training.manager.workspace.index.catalog().audit_log() if each.event == "keep"
    ]
    assert entry.detail == {"experiment": "loop", "step": 10, "tag": "last-good", "reason": "loss is nan"}


def test_without_anything_good_it_says_so_and_training_goes_on(loop: Any, caplog: Any) -> None:
    training = loop(save_policy=OnLossSpike())
    training.go(12, 1.0)
    training.go(1, math.inf)
    assert "loss is inf, and no checkpoint of step 11 or before is left to be kept" in caplog.text


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_branch_that_was_abandoned_has_no_last_good(loop: Any, forgotten: bool) -> None:
    first = loop(save_policy=EverySteps(5))
    first.go(20, 1.0)
    first.close()
    branch = loop(resume="step=10", save_policy=OnLossSpike())  # 15 and 20 are left behind
    if forgotten:  # what led to it did so all the same
        branch.manager.forget("step=10")
    branch.go(7, 1.0)
    branch.go(1, math.nan)
    assert branch.manager.resolve("last-good").step == (5 if forgotten else 10)


def test_the_last_good_is_kept_while_the_catalog_is_away(loop: Any, store_path: Path) -> None:
    first = loop(save_policy=EverySteps(5))
    first.go(10, 1.0)
    first.close()
    away = f"sqlite:///{store_path}/none/catalog.db"
    again = loop(save_policy=OnLossSpike(), catalog=away)
    again.go(7, 1.0)
    again.go(1, math.nan)
    assert again.manager.resolve("last-good").step == 10


def test_what_policies_and_hooks_remember_comes_back(loop: Any, store_path: Path) -> None:
    class Counting(BaseHook):
        name = "counting"
        events = (HookEvent.STEP_END,)
        count = 0

        def execute(self, context: Any) -> None:
            self.count += 1

        def state_dict(self) -> dict[str, int]:
            return {"count": self.count}

        def load_state_dict(self, state: Any) -> None:
            self.count = state["count"]

    for number in range(1, 4):
        counting = Counting()
        training = loop(save_policy=OnPlateau("val", patience=5) | EverySteps(2), hooks=[counting])
        for _ in range(2):
            training.make(val=1.0)
            training.safe_point()
        assert counting.count == 2 * number
        training.close()
    # One value is the best, and five that are no better make the plateau: in the third process.
    training = loop()
    assert training.saved[-1] == (6, "val has not improved on 1 for 5 values; every 2 steps")


def test_a_hook_that_cannot_give_or_take_its_state_stops_nothing(loop: Any, caplog: Any) -> None:
    class Broken(BaseHook):
        name = "broken"
        events = (HookEvent.STEP_END,)

        def __init__(self, *, gives: bool) -> None:
            super().__init__()
            self.gives = gives

        def execute(self, context: Any) -> None: ...

        def state_dict(self) -> dict[str, int]:
            if not self.gives:
                raise RuntimeError("lost")
            return {"a": 1}

        def load_state_dict(self, state: Any) -> None:
            raise RuntimeError("strange")

    for gives in (False, True, True):
        training = loop(save_policy=EverySteps(1), hooks=[Broken(gives=gives)])
        training.go(1)
        training.close()
    assert "the state of hook broken is not saved: RuntimeError('lost')" in caplog.text
    assert "hook broken cannot go on from its state, and begins anew: RuntimeError('strange')" in caplog.text


def test_a_state_that_cannot_be_saved_costs_no_checkpoint(loop: Any, caplog: Any) -> None:
    class Odd(BaseHook):
        name = "odd"
        events = (HookEvent.STEP_END,)
        loaded: Any = None

        def __init__(self, state: Any) -> None:
            super().__init__()
            self.state = state

        def execute(self, context: Any) -> None: ...

        def state_dict(self) -> Any:
            return self.state

        def load_state_dict(self, state: Any) -> None:
            self.loaded = state

    other = Odd({"a": 1})
    training = loop(save_policy=EverySteps(1), hooks=[Odd({"lock": object()}), other])
    training.go(2)
    training.close()
    assert [step for step, _ in training.saved] == [1, 2]
    assert "the state of hook odd is not saved" in caplog.text
    again = [Odd({}), Odd({})]
    loop(hooks=again)
    assert [each.loaded for each in again] == [None, {"a": 1}]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_that_announces_the_end_is_not_taken_for_another(
    name: str, store_path: Path, caplog: Any
) -> None:
    number = signal.Signals[name]
    before = signal.signal(number, lambda *_: None)
    try:
        with CheckpointManager(store_path, experiment="x", save_policy=OnSignal(name)) as manager:
            session = Session(manager)
            session.resume()
            session.begin(0)
            os.kill(os.getpid(), number)
            session.step_end(1)
            assert session.preempted is number
            session.close()
        assert f"{name} announces the end" in caplog.text
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("event", [HookEvent.TRAIN_BEGIN, HookEvent.EPOCH_BEGIN])
def test_a_save_may_be_asked_for_at_every_beginning(event: HookEvent, loop: Any) -> None:
    asking = hook(event)(lambda context: context.request_save("a beginning"))
    training = loop(hooks=[asking])
    training.session.epoch_begin(0, 0)
    training.go(2)
    assert training.saved == [(1, "a beginning")]
