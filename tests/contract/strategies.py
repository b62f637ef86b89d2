"""What every adapter owes to hooks and save policies: all events, the loss of each step, the learning rate."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_core import BaseHook, CheckpointManager, EverySteps, HookEvent, KeepLast, hook
from ckpt_core.errors import HookError

EXPERIMENT = "strategies"

ELSEWHERE = {HookEvent.SAVE_FAILED, HookEvent.LOAD_FAILED, HookEvent.CORRUPTION_FOUND, HookEvent.AFTER_REPAIR}
"""What is the engine's alone, and needs something to be broken."""


class Heard(BaseHook):
    """Everything that happens."""

    name = "heard"
    events = tuple(HookEvent)

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[HookEvent] = set()
        self.losses: dict[int | None, float | None] = {}
        self.rates: list[tuple[int | None, float | None, float]] = []
        self.restored: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"steps": len(self.losses)}

    def load_state_dict(self, state: Any) -> None:
        self.restored.append(dict(state))

    def execute(self, context: Any) -> None:
        self.seen.add(context.event)
        if context.event is HookEvent.STEP_END:
            self.losses[context.step] = context.loss
        if context.event is HookEvent.LEARNING_RATE_CHANGED:
            self.rates.append((context.step, context.data["before"], context.data["now"]))


@hook(HookEvent.STEP_END, condition=lambda context: context.step == 3)
def preempt(context: Any) -> None:
    """Announces the end of the process, which nobody acts upon."""
    signal.raise_signal(signal.SIGUSR1)


@hook(HookEvent.STEP_END, condition=lambda context: context.step == 6, on_error="raise")
def break_down(context: Any) -> None:
    """Ends the training."""
    raise RuntimeError("broken")


def check_all_events(run: Callable[..., None], folder: Path) -> Heard:
    """`run(root, **options)` trains more than six steps of two epochs, with evaluations. What was heard of it."""
    heard = Heard()
    common = {
        "experiment": EXPERIMENT,
        "save_policy": EverySteps(2),
        "retention": [KeepLast(1)],
        "signals": [signal.SIGUSR1],
    }
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with pytest.raises(HookError):
            run(folder / "s", hooks=[heard, preempt, break_down], **common)
        run(folder / "s", hooks=[heard], **common)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert set(HookEvent) - heard.seen == ELSEWHERE
    assert heard.losses
    assert all(isinstance(loss, float) for loss in heard.losses.values()), heard.losses
    assert heard.rates[0][1] is None
    # The newest checkpoint that stands is of step 4, or of what was saved when training failed.
    assert [each["steps"] in (4, 5, 6) for each in heard.restored] == [True]
    return heard


def reasons(root: Path) -> list[tuple[int, str]]:
    """Step and reason of every checkpoint, as their manifests tell."""
    with CheckpointManager(root, experiment=EXPERIMENT) as manager:
        manifests = (manager.workspace.repository.read(each.key).manifest for each in manager.checkpoints())
        return [(manifest.step, manifest.writer["reason"]) for manifest in manifests]


def kept(root: Path) -> int | None:
    """The step of what is tagged `last-good`; None where nothing is."""
    with CheckpointManager(root, experiment=EXPERIMENT) as manager:
        found = [each.step for each in manager.checkpoints() if "last-good" in each.tags and each.pinned]
    return found[0] if found else None
