"""Metric series in the store: append-only sealed segments, one object a flush."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import cast

from ckpt_core import clock
from ckpt_core.errors import CkptError, CorruptionError, ObjectNotFoundError, StoreError
from ckpt_core.format.documents import MetricRow, MetricSegment
from ckpt_core.format.numbers import number_from, number_to
from ckpt_core.format.sealed import seal, unseal
from ckpt_core.model import Attempt, MetricPoint
from ckpt_core.repository import layout
from ckpt_core.repository.repository import attempt_from, attempt_to
from ckpt_core.stores import Store

__all__ = ["MetricSegments"]

_log = logging.getLogger("ckpt_core.repository")


def _rows(points: Sequence[MetricPoint]) -> tuple[MetricRow, ...]:
    """The rows of a segment. As plain tuples, which are the same in JSON: a MetricRow checks what it is made of,
    which takes longer than all the rest; and the points of a step have one moment."""
    at, text = None, ""
    rows = []
    for point in points:
        if point.at is not at:
            at, text = point.at, clock.to_text(point.at)
        rows.append((point.name, point.step, number_to(point.value), text))
    return cast("tuple[MetricRow, ...]", tuple(rows))


class MetricSegments:
    """The metric series of a store. Every method may be called from any thread.

    `written` is told the key of each segment.
    """

    def __init__(self, store: Store, written: Callable[[str], object] | None = None) -> None:
        self._store = store
        self._written = written

    def append(self, experiment: str, attempt: Attempt, points: Sequence[MetricPoint]) -> str:
        """Writes points durably as one new segment; returns its key. Raises StoreError."""
        segment = MetricSegment(experiment=experiment, attempt=attempt_to(attempt), rows=_rows(points))
        key = layout.segment_key(experiment, attempt.number)
        self._store.put_new(key, seal(segment))
        if self._written is not None:
            self._written(key)
        return key

    def keys(self, experiment: str | None = None) -> Iterator[str]:
        """Keys of all segments in the order in which they were written."""
        prefix = layout.METRICS if experiment is None else layout.segments_folder(experiment)
        for info in self._store.list(prefix):
            yield info.key

    def read(self, key: str) -> tuple[str, Attempt, list[MetricPoint]]:
        """Experiment, attempt and points of a segment. Raises CorruptionError, FormatError,
        ObjectNotFoundError."""
        segment = unseal(self._store.get(key, limit=layout.DOCUMENT_LIMIT), MetricSegment, key)
        if not key.startswith(f"{layout.segments_folder(segment.experiment)}/"):
            raise CorruptionError(
                f"{key} is of another experiment: it was moved or copied", kind="document", key=key
            )
        number = segment.attempt.number
        points = [
            MetricPoint(row.name, row.step, number_from(row.value), clock.from_text(row.at), number)
            for row in segment.rows
        ]
        return segment.experiment, attempt_from(segment.attempt), points

    def all(self, experiment: str | None = None) -> Iterator[tuple[str, Attempt, list[MetricPoint]]]:
        """Every segment that can be read; damaged ones are logged and left out. Raises StoreError where the
        store cannot be read."""
        for key in self.keys(experiment):
            try:
                yield self.read(key)
            except ObjectNotFoundError:  # removed since the listing
                continue
            except StoreError:
                raise
            except CkptError as error:
                _log.warning("metric segment left out: %s", error)
