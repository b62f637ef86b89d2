"""What saves cost a training: how much longer its steps take while one is made, and a policy that keeps to a share.

The idea of choosing the interval by the measured cost is CheckFreq's (Mohan, Phanishayee, Chidambaram, FAST 2021).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from statistics import fmean, median

from ckpt_core.hooks import HookEvent
from ckpt_core.policies.arguments import check_quantity
from ckpt_core.policies.save import Progress, _Combinable

__all__ = ["OverheadMeter", "WithinOverhead"]

_QUIET_STEPS = 32
_SAVES = 3


class OverheadMeter:
    """Compares the steps during which a save was being made with those during which none was.

    Told of everything in the order in which it happens, with the seconds of a clock that never goes back.
    """

    def __init__(self) -> None:
        self.pending = 0
        self._quiet: deque[float] = deque(maxlen=_QUIET_STEPS)
        self._costs: deque[float] = deque(maxlen=_SAVES)
        self._since: float | None = None
        self._touched = False
        self._extra = 0.0

    @property
    def cost(self) -> float | None:
        """Seconds by which a save holds training up, as the last few did; None before one was measured."""
        return fmean(self._costs) if self._costs else None

    def step(self, now: float) -> None:
        """A step was made."""
        since, self._since = self._since, now
        if since is None:
            return
        seconds = now - since
        if not (self._touched or self.pending):
            self._quiet.append(seconds)
            return
        if self._quiet:
            self._extra += seconds - median(self._quiet)
        self._touched = self.pending > 0
        if not self._touched:
            if self._quiet:
                self._costs.append(max(self._extra, 0.0))
            self._extra = 0.0

    def other(self, now: float) -> None:
        """Something that is no step took its time: an evaluation, the end of an epoch."""
        self._since = now

    def staged(self) -> None:
        """A save has its copy of the state, and goes on beside training."""
        self.pending += 1
        self._touched = True

    def done(self) -> None:
        """A save has ended, well or not."""
        self.pending = max(self.pending - 1, 0)


@dataclass(frozen=True, slots=True)
class WithinOverhead(_Combinable):
    """As often as possible while saves hold training up by no more than `percent` of its time, measured.

    The first save, after `warm_up` steps, finds out what one costs. None is asked for while another is being
    made, and none earlier than `minutes` after the last.
    """

    percent: float = 3.0
    minutes: float = 1.0
    warm_up: int = 10

    def __post_init__(self) -> None:
        check_quantity("WithinOverhead.percent", self.percent)
        check_quantity("WithinOverhead.minutes", self.minutes, zero=True)
        check_quantity("WithinOverhead.warm_up", self.warm_up, zero=True)

    def wants(self, progress: Progress) -> str | None:
        if progress.event is not HookEvent.STEP_END or progress.saving:
            return None
        if progress.last_saved_at is None:
            late = progress.step - progress.begun_step >= self.warm_up
            return "to find out what a save costs" if late else None
        if progress.save_cost is None:
            return None
        interval = max(progress.save_cost * 100 / self.percent, timedelta(minutes=self.minutes))
        elapsed = progress.now - progress.last_saved_at
        if timedelta(0) <= elapsed < interval:
            return None
        cost, every = progress.save_cost.total_seconds(), interval.total_seconds()
        return f"a save costs {cost:.2g} s of training: one in {every:.3g} s is within {self.percent:g} %"
