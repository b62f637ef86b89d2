"""An event as plain data, for whoever is told of it: a line of a log, a request to a server, a command's input."""

from __future__ import annotations

import math
from typing import Any

from ckpt_core import clock
from ckpt_core.hooks import HookContext
from ckpt_core.model import Checkpoint

__all__ = ["facts_of"]

_LONGEST = 2000


def facts_of(context: HookContext) -> dict[str, Any]:
    """What JSON can hold of an event. What does not apply is left out; a number that JSON lacks is a text.

    Of `data` only plain values: what else is in it is its author's.
    """
    attempt, error = context.attempt, context.error
    found: dict[str, Any] = {
        "event": context.event.value,
        "at": clock.to_text(context.at),
        "experiment": context.experiment,
        "step": context.step,
        "epoch": context.epoch,
        "attempt": None
        if attempt is None
        else {"number": attempt.number, "id": attempt.id, "lineage": attempt.lineage},
        "checkpoint": None if context.checkpoint is None else _checkpoint(context.checkpoint),
        "metrics": {name: _number(value) for name, value in context.metrics.items()} or None,
        "reason": context.reason,
        "error": None if error is None else {"type": type(error).__name__, "message": str(error)[:_LONGEST]},
        "data": {name: _number(value) for name, value in context.data.items() if _is_plain(value)} or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "id": checkpoint.id,
        "experiment": checkpoint.experiment,
        "step": checkpoint.step,
        "created_at": clock.to_text(checkpoint.created_at),
        "logical_bytes": checkpoint.logical_bytes,
        "written_bytes": checkpoint.written_bytes,
        "metrics": {name: _number(value) for name, value in checkpoint.metrics.items()},
        "tags": list(checkpoint.tags),
        "digest": checkpoint.digest,
    }


def _is_plain(value: object) -> bool:
    return isinstance(value, (bool, int, float, str))


def _number(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
