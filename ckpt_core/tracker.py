"""Metric series on their way from a training loop to the store and the catalog."""

from __future__ import annotations

import logging
import operator
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ckpt_core import clock
from ckpt_core.errors import CkptError, UsageError
from ckpt_core.model import Attempt, MetricPoint
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.repository.layout import segments_folder

__all__ = ["MetricLog", "as_metrics"]

_FLUSH_AT = 50_000
_log = logging.getLogger("ckpt_core.metrics")


def as_metrics(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Metrics as plain floats; numbers, numpy scalars and tensors of one value will do. Raises UsageError."""
    found = {}
    for name, value in (metrics or {}).items():
        if not isinstance(name, str) or not _is_name(name):
            raise UsageError(
                f"{name!a} is not the name of a metric: use a printable text of 1 to 255 characters",
                kind="metric",
            )
        try:
            if isinstance(value, (str, bytes)):
                raise TypeError
            found[name] = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # the last is PyTorch's
            raise UsageError(
                f"metric {name!r} is {value!r}, not one number", kind="metric", metric=name
            ) from error
    return found


@lru_cache(maxsize=4096)  # the same few at every step
def _is_name(name: str) -> bool:
    if not 0 < len(name) <= 255 or "\0" in name:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in name)


class MetricLog:
    """Collects metric values and writes them in batches: at every commit, on close, and when many wait."""

    def __init__(self, workspace: Workspace, experiment: str) -> None:
        self._workspace = workspace
        self._experiment = experiment
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._waiting: list[tuple[Attempt, list[MetricPoint]]] = []
        self._count = 0  # points in them
        self._flush_at = _FLUSH_AT
        self._untold: list[tuple[Attempt, Sequence[MetricPoint]]] = []  # durable, but not in the catalog

    def add(self, attempt: Attempt, metrics: Mapping[str, Any], step: int) -> None:
        """Takes the values of one step. Cheap: nothing is written here unless very many wait."""
        try:
            step = operator.index(step)
        except TypeError:
            raise UsageError(
                f"step={step!r} of a metric must be a whole number", kind="step", step=step
            ) from None
        at = clock.now()
        points = [
            MetricPoint(name, step, value, at, attempt.number) for name, value in as_metrics(metrics).items()
        ]
        with self._lock:
            self._waiting.append((attempt, points))
            self._count += len(points)
            full = self._count >= self._flush_at
        if full:
            self.flush()

    def flush(self) -> int:
        """Makes everything taken so far durable. A failure is logged, and the values wait for the next flush.

        Returns how many wait.
        """
        with self._flushing:
            with self._lock:
                taken, self._waiting, self._count = self._waiting, [], 0
            by_attempt: dict[str, tuple[Attempt, list[MetricPoint]]] = {}
            for attempt, points in taken:
                by_attempt.setdefault(attempt.id, (attempt, []))[1].extend(points)
            for attempt, points in by_attempt.values():
                self._write(attempt, points)
            untold, self._untold = self._untold, []
            for attempt, rows in untold:
                self._tell(attempt, rows)
            with self._lock:
                # After a failure not at every further value: each try writes all that wait.
                self._flush_at = self._count + _FLUSH_AT
                return self._count

    def _write(self, attempt: Attempt, points: list[MetricPoint]) -> None:
        try:
            self._workspace.segments.append(self._experiment, attempt, points)
        except CkptError as error:
            _log.warning("%d metric values are kept in memory for now: %s", len(points), error)
            with self._lock:
                self._waiting.insert(0, (attempt, points))
                self._count += len(points)
            return
        self._untold.append((attempt, points))

    def _tell(self, attempt: Attempt, points: Sequence[MetricPoint]) -> None:
        folder = segments_folder(self._experiment)
        if not self._workspace.index.tell(
            lambda catalog: catalog.add_metrics(self._experiment, attempt, points, segment_in=folder)
        ):
            self._untold.append((attempt, points))
