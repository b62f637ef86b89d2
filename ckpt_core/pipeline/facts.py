"""What is known of experiments, by the catalog; by the store itself while the catalog is away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ckpt_core.configuration import Condition
from ckpt_core.maintenance.experiments import synchronise_experiments
from ckpt_core.maintenance.reindex import synchronise_series
from ckpt_core.model import AttemptFacts, Checkpoint, ExperimentFacts, ExperimentSummary
from ckpt_core.pipeline.index import Index, unless_read_only
from ckpt_core.repository import ExperimentRecords, MetricSegments, Repository

if TYPE_CHECKING:
    from ckpt_core.catalog import Catalog

__all__ = ["ExperimentIndex"]


class ExperimentIndex:
    """Questions about the experiments of one store. Thread-safe."""

    def __init__(
        self, index: Index, repository: Repository, records: ExperimentRecords, segments: MetricSegments
    ) -> None:
        self._index = index
        self._repository = repository
        self._records = records
        self._segments = segments

    def experiments(
        self, name: str | None = None, *, tags: Sequence[str] = (), conditions: Sequence[Condition] = ()
    ) -> list[ExperimentFacts]:
        """The experiments (or one) by name, with what their attempts tell. All that bear `tags` and fulfil
        `conditions` are among them; perhaps others, which the caller is to leave out."""
        self._index.synchronise(name)

        def known(catalog: Catalog) -> list[ExperimentFacts]:
            unless_read_only(lambda: synchronise_experiments(self._records, catalog))
            return catalog.experiment_facts(name, tags=tags, conditions=conditions)

        found = self._index.consult(known)
        return self._by_store(name) if found is None else found

    def summaries(self) -> list[ExperimentSummary]:
        """What the checkpoints of each experiment come to, by name. While the catalog is away: of those that have
        any."""
        found = self._index.consult(lambda catalog: catalog.experiments())
        return _by_checkpoints(self._index.checkpoints()) if found is None else found

    def series(self, experiment: str) -> Catalog | None:
        """The catalog, with every metric segment of an experiment in it; None while it is away."""

        def known(catalog: Catalog) -> Catalog:
            unless_read_only(
                lambda: synchronise_series(self._repository, self._segments, catalog, experiment)
            )
            return catalog

        return self._index.consult(known)

    def _by_store(self, name: str | None) -> list[ExperimentFacts]:
        """What the store itself tells. Of attempts of earlier versions only those that saved something."""
        found = {each.name: each for each in self._records.all(name)}
        attempts = {key: {a.attempt.id: a for a in each.attempts} for key, each in found.items()}
        for checkpoint in self._index.standing(name):
            own = attempts.setdefault(checkpoint.experiment, {})
            own.setdefault(checkpoint.attempt.id, AttemptFacts(checkpoint.experiment, checkpoint.attempt))
        return [
            ExperimentFacts(
                each,
                found[each].tags if each in found else (),
                tuple(sorted(attempts.get(each, {}).values(), key=lambda facts: facts.order)),
            )
            for each in sorted(found.keys() | attempts.keys())
        ]


def _by_checkpoints(checkpoints: Sequence[Checkpoint]) -> list[ExperimentSummary]:
    groups: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        groups.setdefault(checkpoint.experiment, []).append(checkpoint)
    return [
        ExperimentSummary(
            name=name,
            checkpoints=len(group),
            attempts=len({c.attempt.id for c in group}),
            first_at=min(c.created_at for c in group),
            last_at=max(c.created_at for c in group),
            last_step=max(group, key=lambda c: c.order).step,
            logical_bytes=sum(c.logical_bytes for c in group),
            written_bytes=sum(c.written_bytes for c in group),
        )
        for name, group in sorted(groups.items())
    ]
