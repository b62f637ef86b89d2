"""Reads checkpoints, tags and experiments. Each walks an index: a test asks the query planner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, Select, distinct, exists, func, select, true

from ckpt_core.catalog.identities import IN_LIST, batches, experiment_of, metric_of
from ckpt_core.catalog.schema import (
    FOUND_ALIVE,
    IS_LIVE,
    attempts,
    checkpoint_metrics,
    checkpoint_packs,
    checkpoints,
    experiments,
    listings,
    packs,
    tags,
)
from ckpt_core.catalog.scope import STORE
from ckpt_core.catalog.types import untidy_number
from ckpt_core.errors import CatalogError, UsageError
from ckpt_core.model import Attempt, Checkpoint, ExperimentSummary

__all__ = [
    *(
        "best",
        "count",
        "experiment_names",
        "find_prefix",
        "ids",
        "listing",
        "listing_word",
        "nearest_step",
        "newest",
    ),
    *("none_at_all", "one", "pack_list", "packs_by_key", "pinned_ids", "steps", "summaries", "tags_of"),
]

Order = Sequence[ColumnElement[Any]]

_MINE = checkpoints.c.store_id == STORE
# Checkpoint.order, as columns.
_LARGEST = 1 << 62  # of all counts in the format
_ORDER = (checkpoints.c.attempt_number, checkpoints.c.attempt_uid, checkpoints.c.step, checkpoints.c.uid)
# Orders of different experiments have nothing to do with each other: there, time decides.
_TIME_ORDER = (checkpoints.c.created_at, checkpoints.c.uid)


def one(connection: Connection, uid: str, include_forgotten: bool) -> Checkpoint | None:
    """The checkpoint of this id."""
    query = _select().where(_MINE, checkpoints.c.uid == uid)
    found = _load(connection, query if include_forgotten else query.where(FOUND_ALIVE))
    return found[0] if found else None


def find_prefix(connection: Connection, prefix: str, experiment: str | None, limit: int) -> list[Checkpoint]:
    """Live checkpoints whose id begins with `prefix`, by id."""
    if not (prefix.isascii() and prefix.isprintable()):
        return []
    # A range, not LIKE: it uses the index, and % and _ are mere characters. DEL follows all printable ASCII.
    query = _select().where(
        _MINE, FOUND_ALIVE, checkpoints.c.uid >= prefix, checkpoints.c.uid < prefix + "\x7f"
    )
    if experiment is not None:
        # A sum is in no index, so that the ids lead here too.
        query = query.where(checkpoints.c.experiment_id + 0 == experiment_of(experiment))
    return _load(connection, query.order_by(checkpoints.c.uid).limit(limit))


def listing(
    connection: Connection,
    experiment: str | None,
    *,
    lineage: str | None,
    tag: str | None,
    step: int | None,
    newest_first: bool,
    limit: int | None,
    offset: int,
    include_forgotten: bool,
) -> list[Checkpoint]:
    """Checkpoints that meet every condition given, in their order; across experiments by time."""
    query = _select()
    if not include_forgotten:
        query = query.where(IS_LIVE if tag is None else FOUND_ALIVE)
    if experiment is not None:
        query = query.where(checkpoints.c.experiment_id == experiment_of(experiment))
    else:
        query = query.where(_MINE)
    if lineage is not None:
        query = query.where(checkpoints.c.lineage_uid == lineage)
    if step is not None:
        query = query.where(checkpoints.c.step == step)
    if tag is not None:
        query = query.join(tags, tags.c.checkpoint_id == checkpoints.c.id).where(tags.c.name == tag)
        if experiment is not None:
            query = query.where(tags.c.experiment_id == experiment_of(experiment))
    order = _TIME_ORDER if experiment is None else _ORDER
    query = query.order_by(*((column.desc() for column in order) if newest_first else order))
    return _load(connection, query.limit(limit).offset(offset or None))


def newest(connection: Connection, experiment: str) -> Checkpoint | None:
    """The newest live checkpoint of the newest attempt that saved."""
    mine = checkpoints.c.experiment_id == experiment_of(experiment)
    query = _select().where(mine, IS_LIVE).order_by(*(column.desc() for column in _ORDER)).limit(1)
    found = _load(connection, query)
    return found[0] if found else None


def ids(connection: Connection, experiment: str | None, include_forgotten: bool) -> set[str]:
    """The ids of all checkpoints of an experiment, or of all experiments."""
    query = select(checkpoints.c.uid)
    if experiment is not None:
        query = query.where(checkpoints.c.experiment_id == experiment_of(experiment))
    else:
        query = query.where(_MINE)
    if not include_forgotten:
        query = query.where(IS_LIVE)
    return set(connection.scalars(query))


def best(
    connection: Connection,
    experiment: str,
    metric: str,
    mode: Literal["min", "max"],
    lineage: str | None,
    limit: int,
) -> list[Checkpoint]:
    """The best live checkpoints by a metric, the best first; ties to the older; NaN is never best."""
    if mode not in ("min", "max"):
        raise UsageError(f"mode must be 'min' or 'max', not {mode!r}", kind="mode", mode=mode)
    if limit < 1:
        return []
    number = connection.scalar(select(metric_of(experiment, metric)))
    if number is None:
        return []
    sign = 1.0 if mode == "min" else -1.0
    rows = _best_rows(connection, number, lineage, mode, limit)
    found = sorted(
        (
            sign * row.value,
            (row.attempt_number, row.attempt_uid, row.step, row.checkpoint_uid),
            row.checkpoint_id,
        )
        for row in rows
    )[:limit]
    numbers = [checkpoint for _, _, checkpoint in found]
    loaded: dict[str, Checkpoint] = {}
    for batch in batches(numbers, IN_LIST):
        loaded |= {
            c.id: c for c in _load(connection, _select().where(checkpoints.c.id.in_(batch), FOUND_ALIVE))
        }
    return [loaded[order[-1]] for _, order, _ in found]


def _best_rows(
    connection: Connection,
    metric: int,
    lineage: str | None,
    mode: Literal["min", "max"],
    limit: int,
) -> list[Row[Any]]:
    """At most `2 * limit` rows with the best `limit` of one lineage, or of all.

    In steps, since no one index gives the largest value first and yet the oldest first among equals: find
    the value of the last one wanted, then take all that are better and the oldest that equal it.
    """
    values = checkpoint_metrics.c
    mine = values.metric_id == metric
    if lineage is not None:
        mine &= values.lineage_uid == lineage
    by_value = (
        select(values.value).where(mine).order_by(values.value if mode == "min" else values.value.desc())
    )
    best_value = connection.scalar(by_value.limit(1))
    if best_value is None:
        return []
    edge = best_value if limit == 1 else connection.scalar(by_value.limit(1).offset(limit - 1))
    # Only what the index holds: the table itself is not looked at.
    oldest = (values.attempt_number, values.attempt_uid, values.step, values.checkpoint_uid)
    rows: Select[Any] = select(values.value, values.checkpoint_id, *oldest).where(mine)
    if edge is None:
        return list(connection.execute(rows))
    found = list(connection.execute(rows.where(values.value == edge).order_by(*oldest).limit(limit)))
    if edge != best_value:
        found += connection.execute(rows.where(values.value < edge if mode == "min" else values.value > edge))
    return found


def none_at_all(connection: Connection) -> bool:
    """Whether the catalog knows no experiment: whatever it is told brings one."""
    return connection.scalar(select(experiments.c.id).where(experiments.c.store_id == STORE).limit(1)) is None


def experiment_names(connection: Connection) -> list[str]:
    """The experiments that have live checkpoints, sorted; one step in the index for each experiment."""
    alive = exists().where(checkpoints.c.experiment_id == experiments.c.id, IS_LIVE)
    query = select(experiments.c.name).where(experiments.c.store_id == STORE, alive)
    return list(connection.scalars(query.order_by(experiments.c.name)))


def count(connection: Connection, experiment: str) -> int:
    """How many live checkpoints an experiment has. Counts them in the index."""
    mine = (checkpoints.c.experiment_id == experiment_of(experiment)) & IS_LIVE
    return connection.scalar(select(func.count()).select_from(checkpoints).where(mine)) or 0


def steps(connection: Connection, experiment: str) -> dict[str, int]:
    """The id of every live checkpoint of an experiment, with its step."""
    query = select(checkpoints.c.uid, checkpoints.c.step)
    query = query.where(checkpoints.c.experiment_id == experiment_of(experiment), IS_LIVE)
    return {row.uid: row.step for row in connection.execute(query)}


def nearest_step(connection: Connection, experiment: str, step: int) -> int | None:
    """The step nearest to `step` of which there is a live checkpoint; of two, the lower."""
    column = checkpoints.c.step
    query = select(column).where(checkpoints.c.experiment_id == experiment_of(experiment), IS_LIVE).limit(1)
    found = (
        connection.scalar(query.where(column <= step).order_by(column.desc())),
        connection.scalar(query.where(column >= step).order_by(column)),
    )
    return min((each for each in found if each is not None), key=lambda s: abs(s - step), default=None)


def listing_word(connection: Connection, folder: str) -> str | None:
    """What `note_listing` noted last."""
    mine = (listings.c.store_id == STORE) & (listings.c.folder == folder)
    word: str | None = connection.scalar(select(listings.c.word).where(mine))
    return word


def tags_of(connection: Connection, experiment: str) -> dict[str, str]:
    """Each tag of an experiment, with the live checkpoint that it names."""
    query = (
        select(tags.c.name, checkpoints.c.uid)
        .join(checkpoints, checkpoints.c.id == tags.c.checkpoint_id)
        .where(tags.c.experiment_id == experiment_of(experiment), FOUND_ALIVE)
        .order_by(tags.c.name)
    )
    return {row.name: row.uid for row in connection.execute(query)}


def pack_list(connection: Connection, uid: str) -> list[tuple[str, int]]:
    """Name and size of each pack that a checkpoint needs."""
    query = (
        select(packs.c.name, packs.c.bytes)
        .join(checkpoint_packs, checkpoint_packs.c.pack_id == packs.c.id)
        .join(checkpoints, checkpoints.c.id == checkpoint_packs.c.checkpoint_id)
        .where(_MINE, checkpoints.c.uid == uid)
        .order_by(packs.c.name)
    )
    return [(name, size) for name, size in connection.execute(query)]


def packs_by_key(connection: Connection) -> dict[str, list[str]]:
    """For each live manifest's key the names of the packs it needs."""
    query = (
        select(checkpoints.c.manifest_key, packs.c.name)
        .join(checkpoint_packs, checkpoint_packs.c.checkpoint_id == checkpoints.c.id)
        .join(packs, packs.c.id == checkpoint_packs.c.pack_id)
        .where(_MINE, IS_LIVE)
    )
    found: dict[str, list[str]] = {}
    for key, name in connection.execute(query):
        found.setdefault(key, []).append(name)
    return found


def pinned_ids(connection: Connection, experiment: str) -> set[str]:
    """The ids of the pinned live checkpoints of an experiment."""
    query = select(checkpoints.c.uid).where(
        checkpoints.c.experiment_id == experiment_of(experiment),
        FOUND_ALIVE,
        checkpoints.c.pinned == true(),
    )
    return set(connection.scalars(query))


def summaries(connection: Connection) -> list[ExperimentSummary]:
    """Every experiment with what its live checkpoints come to, by name. Reads all of them."""
    mine = (checkpoints.c.experiment_id == experiments.c.id) & IS_LIVE
    last = select(checkpoints.c.step).where(mine).order_by(*(column.desc() for column in _ORDER)).limit(1)
    tried = select(func.count(distinct(attempts.c.uid))).where(attempts.c.experiment_id == experiments.c.id)
    query = (
        select(
            experiments.c.name,
            func.count(checkpoints.c.id),
            tried.scalar_subquery(),
            func.min(checkpoints.c.created_at),
            func.max(checkpoints.c.created_at),
            last.correlate(experiments).scalar_subquery(),
            func.coalesce(func.sum(checkpoints.c.logical_bytes), 0),
            func.coalesce(func.sum(checkpoints.c.written_bytes), 0),
        )
        .select_from(experiments)
        .outerjoin(checkpoints, mine)
        .where(experiments.c.store_id == STORE)
        .group_by(experiments.c.id, experiments.c.name)
        .order_by(experiments.c.name)
    )
    return [
        ExperimentSummary(name, count, attempted, first, latest, step, int(logical), int(written))
        for name, count, attempted, first, latest, step, logical, written in connection.execute(query)
    ]


def _select() -> Select[Any]:
    # No join: MariaDB would begin with the experiments, and then sort all that there is.
    name = select(experiments.c.name).where(experiments.c.id == checkpoints.c.experiment_id)
    return select(checkpoints, name.scalar_subquery().label("experiment"))


def _load(connection: Connection, query: Select[Any]) -> list[Checkpoint]:
    rows = connection.execute(query).all()
    tagged = _tags(connection, rows)
    return [_checkpoint(row, tuple(tagged.get(row.id, ()))) for row in rows]


def _tags(connection: Connection, rows: Sequence[Row[Any]]) -> dict[int, list[str]]:
    query = select(tags.c.checkpoint_id, tags.c.name).order_by(tags.c.name)
    found: dict[int, list[str]] = {}
    for batch in batches((row.id for row in rows), IN_LIST):
        for number, name in connection.execute(query.where(tags.c.checkpoint_id.in_(batch))):
            found.setdefault(number, []).append(name)
    return found


def _checkpoint(row: Row[Any], named: tuple[str, ...]) -> Checkpoint:
    numbers = (row.step, row.attempt_number, row.logical_bytes, row.written_bytes, row.tensor_count)
    if not all(isinstance(number, int) and 0 <= number <= _LARGEST for number in numbers):
        raise CatalogError(
            f"the catalog says of the checkpoint {row.uid!a} what none can be: `ckpt reindex` builds it anew from the "
            "store",
            kind="corrupt",
        )
    return Checkpoint(
        id=row.uid,
        experiment=row.experiment,
        step=row.step,
        created_at=row.created_at,
        attempt=Attempt(
            row.attempt_number, row.attempt_uid, row.lineage_uid, row.resumed_from, row.resumed_step
        ),
        parent=row.parent_uid,
        key=row.manifest_key,
        digest=row.manifest_digest,
        logical_bytes=row.logical_bytes,
        written_bytes=row.written_bytes,
        tensor_count=row.tensor_count,
        metrics={name: untidy_number(value) for name, value in row.metrics.items()},
        tags=named,
        pinned=row.pinned,
    )
