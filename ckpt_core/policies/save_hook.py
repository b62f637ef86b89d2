"""The hook that carries a save policy to the training events, and keeps the facts that it judges by.

It asks for saves and makes none: the adapter saves at its next safe point.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from ckpt_core import clock
from ckpt_core.errors import UsageError
from ckpt_core.hooks import BaseHook, HookContext, HookEvent
from ckpt_core.model import Checkpoint
from ckpt_core.policies.overhead import OverheadMeter
from ckpt_core.policies.save import Memory, Progress, SavePolicy, kept, remembered
from ckpt_core.policies.signals import SignalNotes

__all__ = ["SavePolicyHook"]


class SavePolicyHook(BaseHook):
    """Asks `policy` at STEP_END, EPOCH_END and EVALUATE_END, and requests a save with the reason it gives.

    A request counts as the last save from then on, whatever becomes of it: a save that fails or is vetoed
    is asked for again when the policy next wants one, not at every step. AFTER_STAGE tells it of the saves
    that others asked for, TRAIN_BEGIN when and at which step training began. An event without a step is
    passed over. AFTER_SAVE and SAVE_FAILED tell it when a save is over, so that it can measure what one costs.
    What the policy remembers, and the best values, are part of each checkpoint that a session saves.
    """

    name = "save-policy"
    source = "built in"
    events: tuple[HookEvent, ...] = (
        HookEvent.TRAIN_BEGIN,
        HookEvent.STEP_END,
        HookEvent.EVALUATE_END,
        HookEvent.EPOCH_END,
        HookEvent.AFTER_STAGE,
        HookEvent.AFTER_SAVE,
        HookEvent.SAVE_FAILED,
    )

    def __init__(self, policy: SavePolicy, *, saved: Iterable[Checkpoint] = ()) -> None:
        if not callable(getattr(policy, "wants", None)):
            raise UsageError(f"{policy!r} is no save policy: it has no method `wants`", kind="policy")
        super().__init__()
        self.policy = policy
        self._reads = frozenset(getattr(policy, "reads", ()))
        if "learning_rate" in self._reads:
            self.events = (*self.events, HookEvent.LEARNING_RATE_CHANGED)
        self._signals = SignalNotes(getattr(policy, "signals", ()))
        if getattr(policy, "signals", ()):
            self.events = (*self.events, HookEvent.TRAIN_END, HookEvent.TRAIN_FAILED)
        self._memory: Memory = {}
        self._rate: float | None = None
        # Re-entrant, as a signal handler may fire an event in the midst of another.
        self._lock = threading.RLock()
        self._begun: tuple[int, datetime] | None = None
        self._last_step: int | None = None
        self._last_at: datetime | None = None
        self._last_epoch: int | None = None
        self._lowest: dict[str, float] = {}
        self._highest: dict[str, float] = {}
        self._meter = OverheadMeter()
        self.remember(saved)

    def remember(self, saved: Iterable[Checkpoint]) -> None:
        """Begin anew with the metrics of these checkpoints, those of the lineage that training continues.

        Without it, the first value after a resume passes for an improvement.
        """
        with self._lock:
            self._lowest, self._highest = {}, {}
            for checkpoint in saved:
                self._note_metrics(checkpoint.metrics)

    def state_dict(self) -> dict[str, Any]:
        with self._lock:
            state = {"memory": self._memory, "lowest": self._lowest, "highest": self._highest}
            return {name: dict(value) for name, value in state.items() if value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with self._lock:
            self._memory = dict(state.get("memory", {}))
            for name in ("lowest", "highest"):
                self._note_metrics(state.get(name, {}))

    def execute(self, context: HookContext) -> None:
        now = clock.now()
        with self._lock:
            self._measure(context.event)
            if context.event in (HookEvent.AFTER_SAVE, HookEvent.SAVE_FAILED):
                return
            if context.event in (HookEvent.TRAIN_END, HookEvent.TRAIN_FAILED):
                self._signals.uninstall()
                return
            if context.event is HookEvent.LEARNING_RATE_CHANGED:
                self._rate = context.data["now"]
            if context.event is HookEvent.TRAIN_BEGIN:
                self._signals.install()
                self._begin(context.step or 0, now)
            elif context.step is None:
                return
            elif context.event is HookEvent.AFTER_STAGE:
                # One that is staged late must not make the last save an earlier one again.
                self._note_save(max(context.step, self._last_step or 0), context.metrics, now)
            else:
                self._ask(context, context.step, now)

    def _ask(self, context: HookContext, step: int, now: datetime) -> None:
        if self._begun is None:  # a loop that does not say when it begins
            self._begin(max(step - 1, 0), now)
        assert self._begun is not None
        begun_step, begun_at = self._begun
        progress = Progress(
            event=context.event,
            step=step,
            epoch=context.epoch,
            now=now,
            begun_at=begun_at,
            begun_step=begun_step,
            metrics=context.metrics,
            last_saved_step=self._last_step,
            last_saved_at=self._last_at,
            last_saved_epoch=self._last_epoch,
            lowest=self._lowest,
            highest=self._highest,
            saving=self._meter.pending > 0,
            save_cost=None if self._meter.cost is None else timedelta(seconds=self._meter.cost),
            loss=context.loss if "loss" in self._reads else None,
            learning_rate=self._rate,
            signals=self._signals.take(),
            memory=self._memory,
        )
        self._memory = remembered(self.policy, progress)
        progress = replace(progress, memory=self._memory)
        for keep in kept(self.policy, progress):
            context.request_keep(keep.step, keep.tag, keep.reason)
        reason = self.policy.wants(progress)
        if reason:
            context.request_save(reason)
            self._note_save(step, context.metrics, now)
            if context.event is HookEvent.EPOCH_END:
                self._last_epoch = context.epoch

    def _measure(self, event: HookEvent) -> None:
        if event is HookEvent.AFTER_STAGE:
            self._meter.staged()
        elif event in (HookEvent.AFTER_SAVE, HookEvent.SAVE_FAILED):
            self._meter.done()
        elif event is HookEvent.STEP_END:
            self._meter.step(clock.monotonic())
        else:
            self._meter.other(clock.monotonic())

    def _begin(self, step: int, now: datetime) -> None:
        self._begun = (step, now)
        self._last_step = self._last_at = self._last_epoch = None

    def _note_save(self, step: int, metrics: Mapping[str, float], now: datetime) -> None:
        self._last_step, self._last_at = step, now
        self._note_metrics(metrics)

    def _note_metrics(self, metrics: Mapping[str, float]) -> None:
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        # New mappings each time, as a policy may hold on to those it was shown.
        self._lowest = self._lowest | {n: min(v, self._lowest.get(n, v)) for n, v in finite.items()}
        self._highest = self._highest | {n: max(v, self._highest.get(n, v)) for n, v in finite.items()}
