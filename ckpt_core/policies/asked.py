"""Policies as people ask for them, one word each: the list that the command and the REST API share."""

from __future__ import annotations

from ckpt_core.errors import UsageError
from ckpt_core.policies.arguments import Mode
from ckpt_core.policies.capacity import KeepWithinBytes
from ckpt_core.policies.retention import KeepBest, KeepLast, KeepTagged, RetentionPolicy
from ckpt_core.policies.thinning import KeepEvery, KeepSpaced

__all__ = ["asked_policies"]


def asked_policies(
    *,
    keep_last: int | None = None,
    keep_best: int | None = None,
    metric: str | None = None,
    mode: Mode | None = None,
    keep_every_steps: int | None = None,
    keep_every_minutes: float | None = None,
    keep_tagged: str | None = None,
    keep_hourly: int | None = None,
    keep_daily: int | None = None,
    keep_weekly: int | None = None,
    keep_within: str | None = None,
) -> list[RetentionPolicy]:
    """The policies that are asked for. `metric` and `mode` are those of `keep_best`. Raises UsageError."""
    policies: list[RetentionPolicy] = []
    if keep_last is not None:
        policies.append(KeepLast(keep_last))
    if keep_best is not None:
        if metric is None or mode is None:
            raise UsageError(
                "to keep the best, give a metric and its mode, min or max: a guess could keep the worst",
                kind="metric",
            )
        policies.append(KeepBest(keep_best, metric, mode))
    if keep_every_steps is not None:
        policies.append(KeepEvery(steps=keep_every_steps))
    if keep_every_minutes is not None:
        policies.append(KeepEvery(minutes=keep_every_minutes))
    if keep_tagged is not None:
        policies.append(KeepTagged(keep_tagged))
    if (keep_hourly, keep_daily, keep_weekly) != (None, None, None):
        policies.append(KeepSpaced(hourly=keep_hourly or 0, daily=keep_daily or 0, weekly=keep_weekly or 0))
    if keep_within is not None:
        policies.append(KeepWithinBytes(keep_within))
    return policies
