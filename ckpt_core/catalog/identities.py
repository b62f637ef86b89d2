"""Names turned into the catalog's own numbers: experiments, attempts, metrics, packs, checkpoints.

Statements that only read name an experiment by `experiment_of`, a subquery that finds nothing for an
unknown one; those that write make what is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from sqlalchemy import Connection, ScalarSelect, select

from ckpt_core.catalog.dialect import insert_new, upsert
from ckpt_core.catalog.schema import attempts, checkpoints, experiments, metric_names, packs
from ckpt_core.catalog.scope import STORE, current_store
from ckpt_core.catalog.types import check_integer, check_name, check_uid
from ckpt_core.model import Attempt

__all__ = [
    "attempt_ids",
    "batches",
    "checkpoint_ids",
    "experiment_ids",
    "experiment_of",
    "metric_ids",
    "metric_of",
    "pack_ids",
]

# Parameters of one IN list. SQLite before 3.32 takes 999 in a statement.
IN_LIST = 500

Item = TypeVar("Item")


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of at most `size`, taken from their source one list at a time."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch


def experiment_of(name: str) -> ScalarSelect[int]:
    """An experiment's number, inside another statement."""
    return (
        select(experiments.c.id)
        .where(experiments.c.store_id == STORE, experiments.c.name == name)
        .scalar_subquery()
    )


def metric_of(experiment: str, name: str) -> ScalarSelect[int]:
    """A metric's number, inside another statement."""
    mine = (metric_names.c.experiment_id == experiment_of(experiment)) & (metric_names.c.name == name)
    return select(metric_names.c.id).where(mine).scalar_subquery()


def experiment_ids(connection: Connection, names: Collection[str]) -> dict[str, int]:
    """The number of each experiment, made where it is new."""
    wanted = sorted({check_name(name, "the experiment's name") for name in names})
    store = current_store()
    insert_new(connection, experiments, [{"store_id": store, "name": name} for name in wanted])
    found: dict[str, int] = {}
    for batch in batches(wanted, IN_LIST):
        rows = connection.execute(
            select(experiments.c.name, experiments.c.id).where(
                experiments.c.store_id == STORE, experiments.c.name.in_(batch)
            )
        )
        found.update((name, number) for name, number in rows)
    return found


def attempt_ids(connection: Connection, pairs: Collection[tuple[int, Attempt]]) -> dict[tuple[int, str], int]:
    """The number of each attempt, by its experiment's number and its uid; its facts are as given last."""
    rows = {(experiment, attempt.id): _attempt_row(experiment, attempt) for experiment, attempt in pairs}
    upsert(connection, attempts, ("experiment_id", "uid"), [rows[key] for key in sorted(rows)])
    found: dict[tuple[int, str], int] = {}
    for batch in batches(sorted({uid for _, uid in rows}), IN_LIST):
        query = select(attempts.c.experiment_id, attempts.c.uid, attempts.c.id).where(
            attempts.c.uid.in_(batch)
        )
        query = query.where(attempts.c.experiment_id.in_({experiment for experiment, _ in rows}))
        found.update(((experiment, uid), number) for experiment, uid, number in connection.execute(query))
    return found


def _attempt_row(experiment: int, attempt: Attempt) -> dict[str, object]:
    return {
        "experiment_id": experiment,
        "uid": check_uid(attempt.id, "the attempt's id"),
        "number": check_integer(attempt.number, "the attempt's number"),
        "lineage_uid": check_uid(attempt.lineage, "the lineage"),
        "resumed_from": attempt.resumed_from
        and check_uid(attempt.resumed_from, "the checkpoint resumed from"),
        "resumed_step": attempt.resumed_step and check_integer(attempt.resumed_step, "the step resumed at"),
    }


def metric_ids(connection: Connection, pairs: Collection[tuple[int, str]]) -> dict[tuple[int, str], int]:
    """The number of each metric, by the number of its experiment and its name; made where it is new."""
    wanted = sorted({(experiment, check_name(name, "the metric's name")) for experiment, name in pairs})
    rows = [{"experiment_id": experiment, "name": name} for experiment, name in wanted]
    insert_new(connection, metric_names, rows)
    found: dict[tuple[int, str], int] = {}
    of_these = metric_names.c.experiment_id.in_({experiment for experiment, _ in wanted})
    for batch in batches(sorted({name for _, name in wanted}), IN_LIST):
        query = select(metric_names.c.experiment_id, metric_names.c.name, metric_names.c.id)
        query = query.where(of_these, metric_names.c.name.in_(batch))
        found.update(((experiment, name), number) for experiment, name, number in connection.execute(query))
    return found


def pack_ids(connection: Connection, sizes: dict[str, int]) -> dict[str, int]:
    """The number of each pack, made where it is new; its size is as given."""
    store = current_store()
    rows = [{"store_id": store, "name": name, "bytes": size} for name, size in sorted(sizes.items())]
    upsert(connection, packs, ("store_id", "name"), rows)
    found: dict[str, int] = {}
    for batch in batches(sizes, IN_LIST):
        query = select(packs.c.name, packs.c.id).where(packs.c.store_id == STORE, packs.c.name.in_(batch))
        found.update((name, number) for name, number in connection.execute(query))
    return found


def checkpoint_ids(connection: Connection, uids: Sequence[str]) -> dict[str, int]:
    """The number of each of these checkpoints that the catalog knows, live or forgotten."""
    found: dict[str, int] = {}
    for batch in batches(uids, IN_LIST):
        mine = (checkpoints.c.store_id == STORE) & checkpoints.c.uid.in_(batch)
        query = select(checkpoints.c.uid, checkpoints.c.id).where(mine)
        found.update((uid, number) for uid, number in connection.execute(query))
    return found
