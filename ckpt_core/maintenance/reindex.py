"""Bringing the catalog in line with the store, which is the truth: the few differences, or all anew."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpt_core.errors import CkptError, NotFoundError
from ckpt_core.model import Checkpoint
from ckpt_core.repository import MetricSegments, References, Repository

if TYPE_CHECKING:
    from ckpt_core.catalog import Catalog

__all__ = ["ReindexReport", "reindex", "synchronise"]

_log = logging.getLogger("ckpt_core.maintenance")
_BATCH = 500


@dataclass(frozen=True, slots=True)
class ReindexReport:
    """What a rebuilt catalog holds, and what of the store could not be read."""

    checkpoints: int
    forgotten: int
    tags: int
    pins: int
    metric_points: int
    unreadable: tuple[str, ...]


class _Facts:
    """Tags and pins of the whole store (or of one experiment), by checkpoint."""

    def __init__(self, references: References, experiment: str | None = None) -> None:
        self.tags: dict[str, dict[str, str]] = {}
        self.pins: dict[str, set[str]] = {}
        for _, reference in references.all(experiment):
            if reference.kind == "tags":
                self.tags.setdefault(reference.experiment, {})[reference.name] = reference.checkpoint
            else:
                self.pins.setdefault(reference.experiment, set()).add(reference.checkpoint)

    def of(self, experiment: str, checkpoint: str) -> tuple[tuple[str, ...], bool]:
        tags = tuple(sorted(n for n, to in self.tags.get(experiment, {}).items() if to == checkpoint))
        return tags, checkpoint in self.pins.get(experiment, set())


Row = tuple[Checkpoint, Sequence[tuple[str, int]]]


def _rows(repository: Repository, keys: Iterable[str], facts: _Facts, unreadable: list[str]) -> Iterator[Row]:
    for key in keys:
        try:
            committed = repository.read(key)
        except NotFoundError:  # forgotten since the listing
            continue
        except CkptError as error:
            _log.warning("left out of the catalog: %s", error)
            unreadable.append(key)
            continue
        tags, pinned = facts.of(committed.manifest.experiment, committed.manifest.id)
        yield committed.checkpoint(tags, pinned), committed.packs


def synchronise(repository: Repository, references: References, catalog: Catalog, experiment: str | None = None) -> None:
    """Adds to the catalog what the store has and it lacks, and takes out what the store no longer has.

    Costs one listing of names where nothing differs. Raises CatalogError, StoreError.
    """
    standing = {key.id: key.key for key in repository.manifest_keys(experiment)}
    known = catalog.ids(experiment)
    facts = _Facts(references, experiment)
    missing = sorted(standing.keys() - known)
    for start in range(0, len(missing), _BATCH):
        keys = [standing[checkpoint] for checkpoint in missing[start : start + _BATCH]]
        catalog.put_checkpoints(_rows(repository, keys, facts, []))
    gone = known - standing.keys()
    if gone:
        catalog.forget_checkpoints(sorted(gone))
    for name in {experiment} if experiment is not None else facts.tags.keys() | facts.pins.keys():
        _synchronise_references(catalog, name, facts, standing)


def _synchronise_references(catalog: Catalog, experiment: str, facts: _Facts, standing: dict[str, str]) -> None:
    wanted = {tag: to for tag, to in facts.tags.get(experiment, {}).items() if to in standing}
    indexed = catalog.tags(experiment)
    for tag in indexed.keys() - wanted.keys():
        catalog.remove_tag(experiment, tag)
    for tag, to in wanted.items():
        if indexed.get(tag) != to:
            catalog.set_tag(experiment, tag, to)
    pins = facts.pins.get(experiment, set()) & standing.keys()
    pinned = catalog.pinned(experiment)
    for checkpoint in pins ^ pinned:
        catalog.set_pinned(checkpoint, checkpoint in pins)


def reindex(repository: Repository, references: References, segments: MetricSegments, catalog: Catalog) -> ReindexReport:
    """Builds the catalog anew from the store, in one transaction: what is lost with a catalog is nothing
    but its own audit trail and its record of past checks, and these are kept where they can be."""
    unreadable: list[str] = []
    facts = _Facts(references)
    points = 0
    with catalog.rebuild() as fresh:
        trash = [key.key for key in repository.manifest_keys(trash=True)]
        forgotten = list(_rows(repository, trash, facts, unreadable))
        fresh.put_checkpoints(forgotten)
        fresh.forget_checkpoints([checkpoint.id for checkpoint, _ in forgotten])
        live = [key.key for key in repository.manifest_keys()]
        count = fresh.put_checkpoints(_rows(repository, live, facts, unreadable))
        for experiment, attempt, logged in segments.all():
            points += fresh.add_metrics(experiment, attempt, logged)
    return ReindexReport(
        checkpoints=count,
        forgotten=len(forgotten),
        tags=sum(len(tags) for tags in facts.tags.values()),
        pins=sum(len(pins) for pins in facts.pins.values()),
        metric_points=points,
        unreadable=tuple(unreadable),
    )
