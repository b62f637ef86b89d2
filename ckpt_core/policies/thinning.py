"""Retention that thins out: one checkpoint of every so many steps, minutes, hours, days, weeks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ckpt_core.errors import UsageError
from ckpt_core.model import Checkpoint
from ckpt_core.policies.arguments import check_count, check_quantity, named
from ckpt_core.policies.retention import RetentionContext

__all__ = ["KeepEvery", "KeepSpaced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepEvery:
    """Keeps milestones for ever, either by step or by time.

    `steps`: those whose step is a multiple of it. `minutes`: the first one made in each stretch of so many
    minutes (stretches are counted from 1970, UTC, so that they do not shift); once kept, it stays kept.
    """

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise UsageError(
                "KeepEvery needs either steps or minutes: KeepEvery(steps=1000) or KeepEvery(minutes=60); "
                "for both, list two policies",
                argument="KeepEvery",
            )
        if self.steps is not None:
            check_count("KeepEvery.steps", self.steps)
        if self.minutes is not None:
            check_quantity("KeepEvery.minutes", self.minutes)

    def keep(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> Mapping[str, str]:
        reason = self.describe(context)
        if self.steps is not None:
            return {entry.id: reason for entry in checkpoints if entry.step % self.steps == 0}
        first: dict[int, Checkpoint] = {}
        for checkpoint in sorted(checkpoints, key=_by_time):
            first.setdefault(self._stretch(checkpoint.created_at), checkpoint)
        return {checkpoint.id: reason for checkpoint in first.values()}

    def lasting(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> Collection[str]:
        kept = self.keep(checkpoints, context).keys()
        if self.steps is not None or not checkpoints:
            return kept
        # By the first of a stretch the others in it are judged: those that stand, and those still to come.
        others = {self._stretch(c.created_at) for c in checkpoints if c.id not in kept}
        others.add(max(self._stretch(c.created_at) for c in checkpoints))
        return [c.id for c in checkpoints if c.id in kept and self._stretch(c.created_at) not in others]

    def describe(self, context: RetentionContext) -> str:
        if self.steps is not None:
            return named(self.steps, "step")
        assert self.minutes is not None
        return named(self.minutes, "minute")

    def _stretch(self, moment: datetime) -> int:
        assert self.minutes is not None
        return int(moment.timestamp() // max(self.minutes * 60, 1e-6))  # moments are told to the microsecond


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepSpaced:
    """Keeps the newest checkpoint of each of the last so many hours, days and weeks, in UTC.

    Only hours, days and weeks in which there are checkpoints count, so that nothing is lost because a
    machine stood still. Weeks are ISO weeks: they begin on Monday.
    """

    hourly: int = 0
    daily: int = 0
    weekly: int = 0

    def __post_init__(self) -> None:
        for name in ("hourly", "daily", "weekly"):
            check_count(f"KeepSpaced.{name}", getattr(self, name), least=0)
        if not (self.hourly or self.daily or self.weekly):
            raise UsageError(
                "KeepSpaced keeps nothing without a number: KeepSpaced(hourly=24, daily=7, weekly=4)",
                argument="KeepSpaced",
            )

    def keep(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> Mapping[str, str]:
        newest_first = sorted(checkpoints, key=_by_time, reverse=True)
        reasons: dict[str, list[str]] = {}
        for word, count, name_of in (
            ("hourly", self.hourly, _hour),
            ("daily", self.daily, _day),
            ("weekly", self.weekly, _week),
        ):
            for name, checkpoint in _newest_of_each(newest_first, name_of, count).items():
                reasons.setdefault(checkpoint.id, []).append(f"{word} ({name})")
        return {id_: ", ".join(words) for id_, words in reasons.items()}

    def lasting(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> Collection[str]:
        return ()

    def describe(self, context: RetentionContext) -> str:
        numbers = {"hourly": self.hourly, "daily": self.daily, "weekly": self.weekly}
        return "spaced " + ", ".join(f"{count} {word}" for word, count in numbers.items() if count)


def _newest_of_each(
    newest_first: Sequence[Checkpoint], name_of: Callable[[datetime], str], count: int
) -> dict[str, Checkpoint]:
    newest: dict[str, Checkpoint] = {}
    for checkpoint in newest_first:
        if len(newest) == count:
            break
        newest.setdefault(name_of(checkpoint.created_at.astimezone(UTC)), checkpoint)
    return newest


def _by_time(checkpoint: Checkpoint) -> tuple[datetime, tuple[int, str, int, str]]:
    return (checkpoint.created_at, checkpoint.order)


def _hour(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:00")


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")


def _week(moment: datetime) -> str:
    year, week, _ = moment.isocalendar()
    return f"{year}-W{week:02}"
