"""What comes back from firing an event, and what is counted over time. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ckpt_core.hooks.circuit import CircuitState

__all__ = ["FailureKind", "HookFailure", "HookOutcome", "HookStatistics"]

FailureKind: TypeAlias = Literal["raised", "timeout", "condition", "stuck"]


@dataclass(frozen=True, slots=True)
class HookFailure:
    """A hook that did not do its work on one event.

    `kind`: it `raised`; it overran its `timeout`; its `condition` raised; or it was not called because an
    earlier call that overran is `stuck`, still running. `error` is the exception, where there is one.
    """

    hook: str
    kind: FailureKind
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class HookOutcome:
    """What the hooks of one event had to say. BACKGROUND hooks, which are yet to run, have no part in it.

    `reasons` are those of the veto, each as `hook name: reason`. `save_requests` are the reasons for which
    a save was asked for, `keep_requests` step, tag and reason of each checkpoint that is to be kept.
    """

    vetoed: bool = False
    reasons: tuple[str, ...] = ()
    failures: tuple[HookFailure, ...] = ()
    save_requests: tuple[str, ...] = ()
    keep_requests: tuple[tuple[int, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class HookStatistics:
    """What one hook has done since it was registered.

    `calls` that began; of these, `failures` raised and `timeouts` overran. A condition that raised counts
    under `failures` without a call. `dropped` calls were never made: the background queue was full or
    closed, or an earlier call was stuck. `skipped` calls were left out while the circuit was open, as it had failed
    too often. `seconds` that callers (or the worker) spent on it, in all. `last_error` says what went wrong last,
    `circuit` whether it is left out now.
    """

    name: str
    calls: int = 0
    failures: int = 0
    timeouts: int = 0
    vetoes: int = 0
    dropped: int = 0
    skipped: int = 0
    seconds: float = 0.0
    last_error: str | None = None
    circuit: CircuitState = "closed"
