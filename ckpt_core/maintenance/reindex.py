"""Bringing the catalog in line with the store, which is the truth: the few differences, or all anew."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckpt_core.errors import CkptError, NotFoundError, StoreError
from ckpt_core.format.names import encode_name
from ckpt_core.maintenance.marks import MarkReader, Marks
from ckpt_core.model import Checkpoint
from ckpt_core.repository import ExperimentRecords, MetricSegments, Repository, refuse_if_gone
from ckpt_core.repository.layout import (
    MANIFESTS,
    manifest_key,
    manifest_names,
    parse_manifest_key,
    segments_folder,
)

if TYPE_CHECKING:
    from ckpt_core.catalog import Catalog

__all__ = ["ReindexReport", "reindex", "synchronise", "synchronise_series"]

_log = logging.getLogger("ckpt_core.maintenance")


@dataclass(frozen=True, slots=True)
class ReindexReport:
    """What a rebuilt catalog holds, and what of the store could not be read."""

    checkpoints: int
    forgotten: int
    tags: int
    pins: int
    metric_points: int
    experiments: int
    unreadable: tuple[str, ...]


Row = tuple[Checkpoint, Sequence[tuple[str, int]]]


def _rows(
    repository: Repository, keys: Iterable[str], marks: Marks, damaged: dict[str, CkptError]
) -> Iterator[Row]:
    for key in keys:
        if key in damaged:
            continue
        try:
            committed = repository.read(key)
        except NotFoundError:  # forgotten since the listing
            continue
        except StoreError:
            raise
        except CkptError as error:
            _log.error("checkpoint left out: %s", error)
            damaged[key] = error
            continue
        yield marks.on(committed.checkpoint()), committed.packs


def synchronise(
    repository: Repository,
    catalog: Catalog,
    experiment: str,
    marks: MarkReader,
    damaged: dict[str, CkptError],
) -> int | None:
    """Adds to the catalog what the store has of an experiment and it lacks, and takes out what is gone there.

    Costs one listing of names where nothing differs. Manifests that cannot be read are added to `damaged`,
    by their keys, and not tried again. Returns how many manifests there are; None where something could not be
    read, so that the catalog is not all that it should be. Raises CatalogError, StoreError.
    """
    # The catalog first: what is saved in between is then put there twice, and not taken out.
    known = catalog.steps(experiment)
    expected = manifest_names(known)
    folder = f"{MANIFESTS}/{encode_name(experiment)}"
    names = set(repository.store.names(folder))
    found = marks.read(experiment)
    parsed = (parse_manifest_key(f"{folder}/{name}") for name in names - expected.keys())
    missing = {key.id: key.key for key in parsed if key is not None}
    if missing:
        keys = [missing[checkpoint] for checkpoint in sorted(missing)]
        catalog.put_checkpoints(_rows(repository, keys, found, damaged))
    gone = {expected[name] for name in expected.keys() - names}
    if gone:
        if not names:
            refuse_if_gone(repository.store)
        catalog.forget_checkpoints(sorted(gone))
    hurt = {checkpoint for checkpoint, key in missing.items() if key in damaged}
    tags, pins = found.tags.get(experiment, {}), found.pins.get(experiment, set())
    _synchronise_marks(catalog, experiment, tags, pins, (known.keys() - gone) | (missing.keys() - hurt))
    return None if hurt or found.damaged else len(names)


def synchronise_series(
    repository: Repository, segments: MetricSegments, catalog: Catalog, experiment: str
) -> None:
    """Adds the metric series of an experiment to the catalog, all of them, if it was not told of every segment.

    Costs one listing of names where it was. Raises CatalogError, StoreError.
    """
    folder = segments_folder(experiment)
    count = sum(1 for _ in repository.store.names(folder))
    if int(catalog.listing_word(folder) or 0) == count:
        return
    for _, attempt, points in segments.all(experiment):
        catalog.add_metrics(experiment, attempt, points)
    catalog.note_listing(folder, str(count))


def _synchronise_marks(
    catalog: Catalog,
    experiment: str,
    tags: Mapping[str, str],
    pins: Collection[str],
    indexed: Collection[str],
) -> None:
    """`indexed` are the ids that have rows. What another process forgets meanwhile is passed over."""
    wanted = {tag: checkpoint for tag, checkpoint in tags.items() if checkpoint in indexed}
    had = catalog.tags(experiment)
    pinned = catalog.pinned(experiment)
    for tag in had.keys() - wanted.keys():
        catalog.remove_tag(experiment, tag)
    try:
        for tag, checkpoint in wanted.items():
            if had.get(tag) != checkpoint:
                catalog.set_tag(experiment, tag, checkpoint)
        for checkpoint in {pin for pin in pins if pin in indexed} ^ pinned:
            catalog.set_pinned(checkpoint, checkpoint in pins)
    except NotFoundError as error:
        _log.debug("forgotten while the catalog was brought in line: %s", error)


def reindex(repository: Repository, segments: MetricSegments, catalog: Catalog) -> ReindexReport:
    """Builds the catalog anew from the store, in one transaction: what is lost with a catalog is nothing
    but its own audit trail and its record of past checks, and these are kept where they can be.

    The manifests are read before others have to wait. Raises CatalogError, StoreError.
    """
    damaged: dict[str, CkptError] = {}
    marks = MarkReader(repository).read()
    trash = list(_rows(repository, [key.key for key in repository.manifest_keys(trash=True)], marks, damaged))
    live = list(_rows(repository, [key.key for key in repository.manifest_keys()], marks, damaged))
    alive = {checkpoint.id: checkpoint for checkpoint, _ in live}
    # A crash between the two halves of a move leaves a manifest in both places; it is then not forgotten.
    forgotten = [
        (replace(checkpoint, key=manifest_key(checkpoint.experiment, checkpoint.step, checkpoint.id)), packs)
        for checkpoint, packs in trash
        if checkpoint.id not in alive
    ]
    experiments = ExperimentRecords(repository.store).all()
    points = 0
    keys = segments.keys()
    counts = Counter(key.rpartition("/")[0] for key in keys)
    with catalog.rebuild() as fresh:
        fresh.put_checkpoints(forgotten)
        fresh.forget_checkpoints([checkpoint.id for checkpoint, _ in forgotten])
        fresh.put_checkpoints(live)
        for found in experiments:
            fresh.put_attempts(found.attempts)
            for tag in found.tags:
                fresh.set_experiment_tag(found.name, tag)
        for experiment, attempt, logged in segments.all():
            points += fresh.add_metrics(experiment, attempt, logged)
        for folder, count in counts.items():
            fresh.note_listing(folder, str(count))
    return ReindexReport(
        checkpoints=len(live),
        forgotten=len(forgotten),
        tags=sum(len(checkpoint.tags) for checkpoint in alive.values()),
        pins=sum(checkpoint.pinned for checkpoint in alive.values()),
        metric_points=points,
        experiments=len({c.experiment for c in alive.values()} | {found.name for found in experiments}),
        unreadable=tuple(damaged),
    )
