"""Whether every checkpoint is of one instant: compared with a copy that was taken at once, while others may be late."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from ckpt_core import BaseHook, CheckpointManager, HookContext, HookEvent
from ckpt_core.pipeline import staging
from ckpt_torch.lazy import LazyParameters
from contract.training import digest

MODES = ["copy", "lazy", "lazy, as late as may be"]


class Instants(BaseHook):
    """Notes at every save what the state is."""

    events = (HookEvent.AFTER_STAGE, HookEvent.TRAIN_END)
    on_error = "raise"

    def __init__(self, copies: LateCopies | None = None) -> None:
        self._copies = copies
        self._state_of: Callable[[], Any] = dict
        self._part_of: Callable[[Any], Any] = dict
        self.truth: dict[int, str] = {}

    def watch(self, state_of: Callable[[], Any], part_of: Callable[[Any], Any] = lambda state: state) -> None:
        """`state_of` gives the live state, `part_of` the same of a checkpoint."""
        self._state_of, self._part_of = state_of, part_of

    def execute(self, context: HookContext) -> None:
        if context.event is HookEvent.AFTER_STAGE:
            assert context.step is not None
            self.truth[context.step] = digest(self._state_of())
        elif self._copies is not None:  # the last save waits for those before it
            self._copies.release.set()

    def compare(self, manager: CheckpointManager, given_up: int = 0) -> None:
        """Every checkpoint is what was noted, and only as many are missing as were given up."""
        saved = [each.step for each in manager.checkpoints() if each.step in self.truth]
        assert len(saved) == len(self.truth) - given_up > 0
        for step in saved:
            found = digest(self._part_of(manager.load(f"step={step}")))
            assert found == self.truth[step], f"step {step} is torn"


class LateCopies:
    """Late copies are made at the last moment at which they may be: when somebody waits for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.release = threading.Event()
        self.made = 0
        self._here = threading.get_ident()
        self._copy, self._begin = staging._copy, LazyParameters.begin
        monkeypatch.setattr(staging, "_copy", self._late)
        monkeypatch.setattr(
            LazyParameters, "begin", lambda lazy, wait: self._begin_late(lazy, wait), raising=True
        )

    def _late(self, leaf: Any, out: Any) -> None:
        if threading.get_ident() != self._here:
            self.made += 1
            assert self.release.wait(60), "nobody waits for the copies"
        self._copy(leaf, out)

    def _begin_late(self, lazy: LazyParameters, wait: Callable[[], None]) -> bool:
        def waited() -> None:
            self.release.set()
            wait()

        begun = self._begin(lazy, waited)
        self.release.clear()
        return begun
