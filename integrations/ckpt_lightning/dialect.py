"""The words that Lightning's users know, as save and retention policies."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from ckpt_core import (
    AnyOf,
    EveryEpochs,
    KeepBest,
    KeepLast,
    OnImprovement,
    UsageError,
)
from ckpt_core.policies import RetentionPolicy, SavePolicy, save_policy_from

__all__ = ["retention_of", "save_policy_of"]


def save_policy_of(
    *,
    monitor: str | None,
    mode: str,
    save_policy: SavePolicy | None,
    every_n_steps: int | None,
    every_n_train_steps: int | None,
    every_n_epochs: int | None,
    every_minutes: float | None,
    train_time_interval: timedelta | None,
    default: bool = True,
) -> SavePolicy | None:
    """When to save. With nothing said: at the end of every epoch, and with `monitor` whenever it improves; None
    where there is to be no `default`."""
    if every_n_steps is not None and every_n_train_steps is not None:
        raise UsageError("every_n_steps and every_n_train_steps are the same thing: give one of them")
    if every_minutes is not None and train_time_interval is not None:
        raise UsageError("every_minutes and train_time_interval are the same thing: give one of them")
    if train_time_interval is not None:
        every_minutes = train_time_interval.total_seconds() / 60
    steps = every_n_train_steps if every_n_steps is None else every_n_steps
    # ModelCheckpoint says "never by steps" with 0.
    said = [each for each in (steps or None, every_n_epochs or None, every_minutes) if each is not None]
    if said:
        shortcuts = save_policy_from(steps or None, every_n_epochs or None, every_minutes)
        return shortcuts if save_policy is None else AnyOf(save_policy, shortcuts)
    if save_policy is not None:
        return save_policy
    if not default:
        return None
    if monitor is None:
        return EveryEpochs(1)
    return AnyOf(EveryEpochs(1), OnImprovement(monitor, "max" if mode == "max" else "min"))


def retention_of(
    *,
    monitor: str | None,
    save_top_k: int | None,
    save_last: bool | str | None,
    retention: Sequence[RetentionPolicy],
) -> tuple[RetentionPolicy, ...]:
    """What to keep. With nothing said: everything. The newest is always kept, or nothing could be resumed."""
    policies = list(retention)
    if save_top_k is not None and save_top_k != -1:
        if save_top_k < -1:
            raise UsageError(f"save_top_k is {save_top_k}; give -1 (all), 0, or how many to keep")
        if monitor is None and save_top_k > 1:
            raise UsageError(f"save_top_k={save_top_k} of what? name a metric with monitor=")
        if monitor is not None and save_top_k > 0:
            policies.append(KeepBest(save_top_k))
        policies.append(KeepLast(1))
    elif save_last and policies:
        policies.append(KeepLast(1))
    return tuple(policies)
