"""A hook that any project can use once this package is installed: it says no to saves when enough was written.

    pip install ./examples/custom_hook

Then it is used by its name, `write-budget`, in a `ckpt.toml` (there is one beside this file) or by `make_hook`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core import BaseHook, HookContext, HookEvent, HookPriority, UsageError

__all__ = ["WriteBudget"]


class WriteBudget(BaseHook):
    """No more saves once a training, with all its resumes, has written `megabytes`. The last ones are kept."""

    events = (HookEvent.BEFORE_SAVE, HookEvent.AFTER_SAVE)
    priority = HookPriority.CRITICAL  # before hooks that would prepare for a save

    def __init__(self, *, megabytes: float) -> None:
        super().__init__()
        if megabytes <= 0:
            raise UsageError(f"megabytes is {megabytes}; give a number above 0")
        self.limit = megabytes * 1e6
        self.written = 0

    def execute(self, context: HookContext) -> bool | None:
        if context.event is HookEvent.AFTER_SAVE and context.checkpoint is not None:
            self.written += context.checkpoint.written_bytes
            return None
        if self.written >= self.limit:
            return context.veto(f"{self.written / 1e6:.1f} MB are written, of {self.limit / 1e6:g}")
        return None

    # What was counted is part of each checkpoint of a session, and comes back with a resume.

    def state_dict(self) -> dict[str, Any]:
        return {"written": self.written}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.written = int(state["written"])
