"""Metric series on their way from a training loop to the store and the catalog."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from ckpt_core import clock
from ckpt_core.errors import CkptError, UsageError
from ckpt_core.model import Attempt, MetricPoint
from ckpt_core.pipeline.workspace import Workspace

__all__ = ["MetricLog", "as_metrics"]

_FLUSH_AT = 50_000
_log = logging.getLogger("ckpt_core.metrics")


def as_metrics(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Metrics as plain floats; numbers, numpy scalars and tensors of one value will do. Raises UsageError."""
    found = {}
    for name, value in (metrics or {}).items():
        if not isinstance(name, str) or not name or len(name) > 255:
            raise UsageError(f"{name!r} is not the name of a metric: use a text of 1 to 255 characters", kind="metric")
        try:
            found[name] = float(value)
        except (TypeError, ValueError) as error:
            raise UsageError(f"metric {name!r} is {value!r}, not one number", kind="metric", metric=name) from error
    return found


class MetricLog:
    """Collects metric values and writes them in batches: at every commit, on close, and when many wait."""

    def __init__(self, workspace: Workspace, experiment: str) -> None:
        self._workspace = workspace
        self._experiment = experiment
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._waiting: list[tuple[Attempt, MetricPoint]] = []

    def add(self, attempt: Attempt, metrics: Mapping[str, Any], step: int) -> None:
        """Takes the values of one step. Cheap: nothing is written here unless very many wait."""
        at = clock.now()
        points = [MetricPoint(name, step, value, at, attempt.number) for name, value in as_metrics(metrics).items()]
        with self._lock:
            self._waiting.extend((attempt, point) for point in points)
            full = len(self._waiting) >= _FLUSH_AT
        if full:
            self.flush()

    def flush(self) -> None:
        """Makes everything taken so far durable. A failure is logged; the values wait for the next flush."""
        with self._flushing:
            with self._lock:
                taken, self._waiting = self._waiting, []
            by_attempt: dict[str, tuple[Attempt, list[MetricPoint]]] = {}
            for attempt, point in taken:
                by_attempt.setdefault(attempt.id, (attempt, []))[1].append(point)
            for attempt, points in by_attempt.values():
                self._write(attempt, points)

    def _write(self, attempt: Attempt, points: list[MetricPoint]) -> None:
        try:
            self._workspace.segments.append(self._experiment, attempt, points)
        except CkptError as error:
            _log.warning("%d metric values are kept in memory for now: %s", len(points), error)
            with self._lock:
                self._waiting[:0] = [(attempt, point) for point in points]
            return
        self._workspace.index.tell(lambda catalog: catalog.add_metrics(self._experiment, attempt, points))
