"""Replaces what the store can tell again, in one transaction; history (checks, audit) stays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from sqlalchemy import Connection, delete

from ckpt_core.catalog import checkpoints, experiments, metrics
from ckpt_core.catalog.belonging import of_store
from ckpt_core.catalog.checkpoints import Entry
from ckpt_core.catalog.identities import IN_LIST, batches
from ckpt_core.catalog.schema import (
    attempt_facts,
    attempts,
    checkpoint_metrics,
    checkpoint_packs,
    config_values,
    experiment_metrics,
    experiment_tags,
    listings,
    metric_names,
    packs,
    tags,
)
from ckpt_core.catalog.schema import checkpoints as checkpoints_table
from ckpt_core.catalog.schema import experiments as experiments_table
from ckpt_core.model import Attempt, AttemptFacts, MetricPoint

__all__ = ["Rebuild"]

# Whatever refers to a table goes before it.
_CHILDREN_FIRST = (
    listings,
    checkpoint_metrics,
    checkpoint_packs,
    tags,
    packs,
    checkpoints_table,
    experiment_metrics,
    metric_names,
    config_values,
    attempt_facts,
    experiment_tags,
    attempts,
    experiments_table,
)


@final
class Rebuild:
    """A catalog being filled anew. Nobody sees it before `Catalog.rebuild()` ends without an exception."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        for table in _CHILDREN_FIRST:
            connection.execute(delete(table).where(of_store(table)))

    def put_checkpoints(self, entries: Iterable[Entry]) -> int:
        """As `Catalog.put_checkpoints`."""
        count = 0
        for batch in batches(entries, IN_LIST):
            checkpoints.put(self._connection, batch)
            count += len(batch)
        return count

    def forget_checkpoints(self, ids: Iterable[str]) -> int:
        """As `Catalog.forget_checkpoints`: for manifests that lie in the trash."""
        return checkpoints.forget(self._connection, ids)

    def note_listing(self, folder: str, word: str) -> None:
        """As `Catalog.note_listing`."""
        checkpoints.note_listing(self._connection, folder, word)

    def put_attempts(self, facts: Iterable[AttemptFacts]) -> None:
        """As `Catalog.put_attempts`."""
        for batch in batches(facts, IN_LIST):
            experiments.put(self._connection, batch)

    def set_experiment_tag(self, experiment: str, tag: str) -> None:
        """As `Catalog.set_experiment_tag`."""
        experiments.set_tag(self._connection, experiment, tag)

    def add_metrics(self, experiment: str, attempt: Attempt, points: Iterable[MetricPoint]) -> int:
        """As `Catalog.add_metrics`."""
        count = 0
        for batch in batches(points, metrics.BATCH):
            metrics.add(self._connection, experiment, attempt, batch)
            count += len(batch)
        return count
