"""The facts a hook may react to, and the order in which hooks react. Words only, no behaviour."""

from __future__ import annotations

from enum import IntEnum, StrEnum

__all__ = ["HookEvent", "HookPriority"]


class HookEvent(StrEnum):
    """Something that happened, or is about to (`BEFORE_*`)."""

    # Fired by adapters, on the training thread.
    TRAIN_BEGIN = "train_begin"
    EPOCH_BEGIN = "epoch_begin"
    STEP_END = "step_end"
    EVALUATE_END = "evaluate_end"
    EPOCH_END = "epoch_end"
    LEARNING_RATE_CHANGED = "learning_rate_changed"
    TRAIN_END = "train_end"
    TRAIN_FAILED = "train_failed"
    PREEMPTED = "preempted"

    # Fired by the engine, on the thread that does the work.
    BEFORE_SAVE = "before_save"
    AFTER_STAGE = "after_stage"
    AFTER_SAVE = "after_save"
    SAVE_FAILED = "save_failed"
    NEW_BEST = "new_best"
    BEFORE_LOAD = "before_load"
    AFTER_LOAD = "after_load"
    LOAD_FAILED = "load_failed"
    BEFORE_DELETE = "before_delete"
    AFTER_DELETE = "after_delete"
    CORRUPTION_FOUND = "corruption_found"
    AFTER_REPAIR = "after_repair"

    @property
    def can_be_vetoed(self) -> bool:
        """Whether a hook can still stop it: true of the `BEFORE_*` events."""
        return self.value.startswith("before_")


class HookPriority(IntEnum):
    """When a hook runs among those of one event: smaller first. BACKGROUND runs off the calling thread."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3
    BACKGROUND = 4
