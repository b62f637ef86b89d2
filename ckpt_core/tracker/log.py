"""Metric values on their way from a training loop to the store and the catalog."""

from __future__ import annotations

import logging
import math
import operator
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ckpt_core import clock
from ckpt_core.errors import CkptError, UsageError
from ckpt_core.model import Attempt, MetricPoint
from ckpt_core.perf.batches import BatchProcessor, BatchStats
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.repository.layout import segments_folder

if TYPE_CHECKING:
    from ckpt_core.catalog import Catalog

__all__ = ["MetricLog", "as_metrics", "check_metric", "check_seconds", "fit_for_best"]

_FLUSH_AT = 50_000
_UNTOLD = 500_000
"""So many values are kept for a catalog that is away."""
_LARGEST_STEP = 1 << 62  # of the format
_Step = tuple[Attempt, list[MetricPoint]]
_log = logging.getLogger("ckpt_core.metrics")


def as_metrics(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Metrics as plain floats; numbers, numpy scalars and tensors of one value will do. Raises UsageError."""
    found = {}
    for name, value in (metrics or {}).items():
        check_metric(name)
        try:
            if isinstance(value, (str, bytes)):
                raise TypeError
            found[name] = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # the last is PyTorch's
            raise UsageError(
                f"metric {name!r} is {value!r}, not one number", kind="metric", metric=name
            ) from error
    return found


def check_metric(name: object) -> None:
    """Raises UsageError for what cannot be the name of a metric."""
    if not isinstance(name, str) or not _is_name(name):
        raise UsageError(
            f"{name!a} is not the name of a metric: use a printable text of 1 to 255 characters",
            kind="metric",
        )


def check_seconds(seconds: float | None) -> None:
    """Raises UsageError for what cannot be `flush_seconds`."""
    if seconds is not None and not (isinstance(seconds, (int, float)) and 0 < seconds < 1e9):
        raise UsageError(f"flush_seconds={seconds!r} must be more than 0, or None", kind="option")


def fit_for_best(values: dict[str, float], metric: str | None, step: int) -> dict[str, float]:
    """The metrics of a checkpoint. Raises UsageError for a NaN of the metric that *best* goes by."""
    if metric is not None and math.isnan(values.get(metric, 0.0)):
        raise UsageError(
            f"metric {metric!r} is NaN at step {step}, so no checkpoint could be called best by it; "
            "save without it, or find out why it is NaN",
            kind="metric",
            metric=metric,
            step=step,
        )
    return values


@lru_cache(maxsize=4096)  # the same few at every step
def _is_name(name: str) -> bool:
    if not 0 < len(name) <= 255 or "\0" in name:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _whole(step: int) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        number = None
    if number is None or abs(number) > _LARGEST_STEP:
        raise UsageError(
            f"step={step!r} of a metric must be a whole number, at most {_LARGEST_STEP}",
            kind="step",
            step=step,
        )
    return number


class _Untold(NamedTuple):
    """Values that are durable, but not in the catalog. `segment_in` as for `Catalog.add_metrics`."""

    attempt: Attempt
    points: list[MetricPoint]
    segment_in: str | None


class MetricLog:
    """Collects metric values and writes them in batches: `seconds` after they were logged at the latest, at every
    commit, on close, and when many wait. `settle` is called before anything is written."""

    def __init__(
        self,
        workspace: Workspace,
        experiment: str,
        *,
        seconds: float | None = None,
        settle: Callable[[], object] = lambda: None,
    ) -> None:
        self._workspace = workspace
        self._experiment = experiment
        self._settle = settle
        self._batches = BatchProcessor[_Step](
            self._write, max_items=_FLUSH_AT, max_seconds=seconds, weight=_points_of, name="ckpt-metrics"
        )
        self._untold: list[_Untold] = []
        self._telling = threading.Lock()

    def add(self, attempt: Attempt, metrics: Mapping[str, Any], step: int) -> None:
        """Takes the values of one step. Cheap: nothing is written here unless very many wait."""
        number = _whole(step)
        at = clock.now()
        points = [
            MetricPoint(name, number, value, at, attempt.number)
            for name, value in as_metrics(metrics).items()
        ]
        self._batches.add((attempt, points))

    def flush(self) -> int:
        """Makes everything taken so far durable. A failure is logged, and the values wait for the next flush.

        Returns how many wait.
        """
        self._settle()
        waiting = self._batches.flush()
        self._tell()
        return waiting

    def close(self) -> int:
        """The last flush. Returns how many values are lost."""
        lost = self._batches.close()
        self._tell()
        return lost

    def stats(self) -> BatchStats:
        """How many values wait, and how many were written."""
        return self._batches.stats()

    def _write(self, taken: list[_Step]) -> list[_Step]:
        self._settle()
        written: list[_Untold] = []
        folder = segments_folder(self._experiment)
        by_attempt: dict[str, _Step] = {}
        for attempt, points in taken:
            by_attempt.setdefault(attempt.id, (attempt, []))[1].extend(points)
        left = []
        for attempt, points in by_attempt.values():
            try:
                self._workspace.segments.append(self._experiment, attempt, points)
            except CkptError as error:
                _log.warning("%d metric values are kept in memory for now: %s", len(points), error)
                left.append((attempt, points))
            else:
                written.append(_Untold(attempt, points, folder))
        with self._telling:
            self._untold += written
        self._tell()
        return left

    def _tell(self) -> None:
        """Tells the catalog, or keeps the last values for it. Whoever brings it in line finds all of them in the
        store, and counts their segments: so they are not counted again when it is told late."""
        with self._telling:
            untold, self._untold = self._untold, []
            for each in untold:
                if not self._workspace.index.tell(partial(_add, self._experiment, each)):
                    self._untold.append(each._replace(segment_in=None))
            left = sum(len(each.points) for each in self._untold)
            while left > _UNTOLD:
                left -= len(self._untold.pop(0).points)


def _add(experiment: str, untold: _Untold, catalog: Catalog) -> None:
    catalog.add_metrics(experiment, untold.attempt, untold.points, segment_in=untold.segment_in)


def _points_of(step: _Step) -> int:
    return len(step[1])
