"""One metric of one training effort, by step and time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt

from ckpt_core.errors import NotFoundError, UsageError
from ckpt_core.model import MetricPoint
from ckpt_core.tracker.tables import Tabular

__all__ = ["MetricSeries"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@final
class MetricSeries(Tabular):
    """The points of a metric in the order of their steps; of each step what was logged last.

    `steps` (int64), `values` (float64) and `attempts` (int64) are arrays of one length; so are `moments`
    (`datetime64[us]`, in UTC).
    """

    def __init__(
        self, experiment: str, name: str, points: Iterable[tuple[int, float, datetime, int]]
    ) -> None:
        rows = list(points)
        self.experiment = experiment
        self.name = name
        self.steps: npt.NDArray[np.int64] = np.array([row[0] for row in rows], np.int64)
        self.values: npt.NDArray[np.float64] = np.array([row[1] for row in rows], np.float64)
        self._microseconds = np.array([(row[2] - _EPOCH) // _MICROSECOND for row in rows], np.int64)
        self.attempts: npt.NDArray[np.int64] = np.array([row[3] for row in rows], np.int64)

    @property
    def moments(self) -> npt.NDArray[np.datetime64]:
        """When each value was logged, in UTC."""
        return self._microseconds.view("datetime64[us]")

    # -- questions -------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[MetricPoint]:
        return map(self._point, range(len(self)))

    @property
    def last(self) -> MetricPoint:
        """The point of the highest step. Raises NotFoundError where there is none."""
        self._refuse_empty()
        return self._point(len(self) - 1)

    @property
    def min(self) -> MetricPoint:
        """The smallest value; of several the first. NaN does not count. Raises NotFoundError."""
        return self.best("min")

    @property
    def max(self) -> MetricPoint:
        """The largest value; of several the first. NaN does not count. Raises NotFoundError."""
        return self.best("max")

    @property
    def summary(self) -> dict[str, MetricPoint | None]:
        """`last`, `min` and `max`: None where nothing was logged, or nothing but NaN."""
        found: dict[str, MetricPoint | None] = {}
        for what in ("last", "min", "max"):
            try:
                found[what] = getattr(self, what)
            except NotFoundError:
                found[what] = None
        return found

    def best(self, mode: Literal["min", "max"] = "min") -> MetricPoint:
        """The best value; of several the first. NaN does not count. Raises NotFoundError, UsageError."""
        if mode not in ("min", "max"):
            raise UsageError(f"mode must be 'min' or 'max', not {mode!r}", kind="mode", mode=mode)
        self._refuse_empty()
        counted = np.flatnonzero(~np.isnan(self.values))
        if not len(counted):
            raise NotFoundError(f"every value of {self.name!r} of {self.experiment!r} is NaN", kind="metric")
        values = self.values[counted]
        return self._point(int(counted[np.argmin(values) if mode == "min" else np.argmax(values)]))

    def at(self, step: int) -> MetricPoint:
        """The point of a step. Raises NotFoundError, which names the nearest step that there is."""
        self._refuse_empty()
        place = int(np.searchsorted(self.steps, step))
        if place < len(self) and self.steps[place] == step:
            return self._point(place)
        around = self.steps[max(0, place - 1) : place + 1]
        nearest = int(min(around, key=lambda each: abs(int(each) - step)))
        raise NotFoundError(
            f"{self.name!r} was not logged at step {step}; the nearest is step {nearest}",
            kind="metric", step=step, nearest=nearest,
        )  # fmt: skip

    def between(self, first: int | None = None, last: int | None = None) -> MetricSeries:
        """The part from one step to another, both of them in it."""
        begin = 0 if first is None else int(np.searchsorted(self.steps, first, "left"))
        end = len(self) if last is None else int(np.searchsorted(self.steps, last, "right"))
        part = MetricSeries(self.experiment, self.name, ())
        part.steps, part.values = self.steps[begin:end], self.values[begin:end]
        part._microseconds, part.attempts = self._microseconds[begin:end], self.attempts[begin:end]
        return part

    # -- as tables and pictures ------------------------------------------------------------------

    def columns(self) -> dict[str, Sequence[Any]]:
        columns: dict[str, Any] = {
            "step": self.steps, "value": self.values, "at": self.moments, "attempt": self.attempts,
        }  # fmt: skip
        return columns

    def title(self) -> str:
        return f"{self.name} of {self.experiment}"

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draws the series by step with matplotlib, into `ax` or a figure of its own; returns the axes.
        `options` are those of `Axes.plot`. Raises MissingExtraError."""
        from ckpt_core.tracker.plot import plot_series

        return plot_series([self], ax, **options)

    def __repr__(self) -> str:
        if not len(self):
            return f"<MetricSeries {self.title()}: empty>"
        last = self.last
        return f"<MetricSeries {self.title()}: {len(self)} points, last {last.value:.5g} at step {last.step}>"

    # -- details ---------------------------------------------------------------------------------

    def _refuse_empty(self) -> None:
        if not len(self):
            raise NotFoundError(
                f"{self.experiment!r} has logged no {self.name!r}", kind="metric", metric=self.name
            )

    def _point(self, place: int) -> MetricPoint:
        at = _EPOCH + int(self._microseconds[place]) * _MICROSECOND
        value = float(self.values[place])
        return MetricPoint(self.name, int(self.steps[place]), value, at, int(self.attempts[place]))
