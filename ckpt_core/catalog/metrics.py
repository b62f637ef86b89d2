"""Metric series: points logged by attempts, and the one series that a lineage's attempts make together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, exists, select

from ckpt_core.catalog.dialect import upsert, upsert_bulk
from ckpt_core.catalog.identities import attempt_ids, experiment_ids, experiment_of, metric_ids, metric_of
from ckpt_core.catalog.schema import attempts, experiment_metrics, listings, metric_names
from ckpt_core.catalog.scope import STORE, current_store
from ckpt_core.catalog.types import check_integer, microseconds, split_number, unsplit_number
from ckpt_core.errors import UsageError
from ckpt_core.model import Attempt, MetricPoint

__all__ = ["BATCH", "add", "columns", "count_segment", "names", "series"]

BATCH = 20_000
"""Points of one transaction: enough to make its cost vanish, few enough not to keep a save waiting."""

_COLUMNS = ("attempt_id", "metric_id", "step", "value", "special", "at")
_NEWEST_FIRST = (attempts.c.number.desc(), attempts.c.uid.desc())


def add(connection: Connection, experiment: str, attempt: Attempt, points: Iterable[MetricPoint]) -> None:
    """Writes points of one attempt; a point with the name and step of an earlier one replaces it."""
    latest = {(point.name, point.step): point for point in _of_attempt(points, attempt)}
    number = experiment_ids(connection, [experiment])[experiment]
    attempt_number = attempt_ids(connection, [(number, attempt)])[number, attempt.id]
    metrics = metric_ids(connection, {(number, name) for name, _ in latest})
    rows = []
    at, stamp = None, 0
    for (name, step), point in latest.items():
        if point.at is not at:  # the points of a step have one moment
            at, stamp = point.at, microseconds(point.at)
        finite, special = split_number(point.value)
        rows.append(
            (attempt_number, metrics[number, name], check_integer(step, "step"), finite, special, stamp)
        )
    rows.sort()  # as the table is ordered, which then grows at few ends
    upsert_bulk(connection, experiment_metrics, _COLUMNS[:3], _COLUMNS, rows)


def count_segment(connection: Connection, folder: str) -> None:
    """Notes that one more segment of this folder of the store is in the catalog."""
    mine = (listings.c.store_id == STORE) & (listings.c.folder == folder)
    word = connection.scalar(select(listings.c.word).where(mine))
    row = {"store_id": current_store(), "folder": folder, "word": str(int(word or 0) + 1)}
    upsert(connection, listings, ("store_id", "folder"), [row])


def _of_attempt(points: Iterable[MetricPoint], attempt: Attempt) -> Iterator[MetricPoint]:
    for point in points:
        if point.attempt != attempt.number:
            raise UsageError(
                f"a point of attempt {point.attempt} was given as one of attempt {attempt.number}",
                kind="attempt",
            )
        yield point


def names(connection: Connection, experiment: str, logged: bool) -> list[str]:
    """Names of the metrics that have a series or, unless only those are asked for, stand in a checkpoint; sorted."""
    points = experiment_metrics.c
    query = select(metric_names.c.name).where(metric_names.c.experiment_id == experiment_of(experiment))
    if logged:
        here = _is_any(points.attempt_id == attempts.c.id, points.metric_id == metric_names.c.id)
        query = query.where(exists().where(attempts.c.experiment_id == metric_names.c.experiment_id, here))
    return list(connection.scalars(query.order_by(metric_names.c.name)))


def series(connection: Connection, experiment: str, name: str, lineage: str | None) -> list[MetricPoint]:
    """The points of a lineage by step; of a step that several attempts logged, what the newest one said.

    Without `lineage`: of the newest attempt that logged anything, so that the series of two metrics belong
    to one training effort.
    """
    return [
        MetricPoint(name, step, value, at, number)
        for step, value, at, number in columns(connection, experiment, name, lineage)
    ]


def columns(
    connection: Connection, experiment: str, name: str, lineage: str | None
) -> list[tuple[int, float, datetime, int]]:
    """The same as (step, value, moment, attempt's number)."""
    lineage = lineage if lineage is not None else _newest_lineage(connection, experiment)
    if lineage is None:
        return []
    points = experiment_metrics.c
    query = (
        select(points.step, points.value, points.special, points.at, attempts.c.number)
        .join(attempts, attempts.c.id == points.attempt_id)
        .where(
            attempts.c.experiment_id == experiment_of(experiment),
            attempts.c.lineage_uid == lineage,
            points.metric_id == metric_of(experiment, name),
        )
        .order_by(attempts.c.number, attempts.c.uid)
    )
    effective = {
        step: (step, unsplit_number(value, special), at, number)
        for step, value, special, at, number in connection.execute(query)
    }
    return [effective[step] for step in sorted(effective)]


def _is_any(*where: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether there is such a point. EXISTS is made a join by servers, or a walk through the table for the first, and
    either may read all that there is: this one begins in the index, and ends there."""
    first = select(experiment_metrics.c.step).where(*where).order_by(*experiment_metrics.primary_key).limit(1)
    return first.correlate(attempts, metric_names).scalar_subquery().is_not(None)


def _newest_lineage(connection: Connection, experiment: str) -> str | None:
    logged = _is_any(experiment_metrics.c.attempt_id == attempts.c.id)
    query = select(attempts.c.lineage_uid).where(
        attempts.c.experiment_id == experiment_of(experiment), logged
    )
    return connection.scalar(query.order_by(*_NEWEST_FIRST).limit(1))
