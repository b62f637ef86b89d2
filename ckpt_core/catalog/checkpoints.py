"""Writes checkpoints and what hangs on them: metrics, tags, pins, packs. Reading is in `queries.py`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, exists, insert, select, update

from ckpt_core.catalog.dialect import upsert
from ckpt_core.catalog.identities import (
    IN_LIST,
    attempt_ids,
    batches,
    checkpoint_ids,
    experiment_ids,
    experiment_of,
    metric_ids,
    pack_ids,
)
from ckpt_core.catalog.schema import (
    FORGOTTEN,
    FOUND_ALIVE,
    LIVE,
    checkpoint_metrics,
    checkpoint_packs,
    checkpoints,
    listings,
    packs,
    tags,
)
from ckpt_core.catalog.scope import STORE, current_store
from ckpt_core.catalog.types import (
    KEY_LENGTH,
    check_integer,
    check_name,
    check_uid,
    microseconds,
    rank_of,
    tidy,
)
from ckpt_core.errors import NotFoundError
from ckpt_core.model import Checkpoint

__all__ = ["Entry", "forget", "note_listing", "put", "remove_tag", "set_pinned", "set_tag"]

_MINE = checkpoints.c.store_id == STORE

Entry = tuple[Checkpoint, Sequence[tuple[str, int]]]
"""A checkpoint, and the name and size of each pack that it needs."""


class _Known(NamedTuple):
    """A checkpoint of the batch with the numbers that its rows refer to."""

    checkpoint: Checkpoint
    number: int
    experiment: int


def put(connection: Connection, entries: Iterable[Entry]) -> None:
    """Inserts or overwrites checkpoints: afterwards live, with exactly these metrics, tags and packs.

    A tag that another checkpoint of the experiment had moves. The number of statements does not depend on
    the number of entries. Raises UsageError for values that not every database could hold.
    """
    given = {checkpoint.id: (checkpoint, needed) for checkpoint, needed in entries}
    if not given:
        return
    all_checkpoints = [checkpoint for checkpoint, _ in given.values()]
    numbers = experiment_ids(connection, {checkpoint.experiment for checkpoint in all_checkpoints})
    attempt_ids(connection, [(numbers[c.experiment], c.attempt) for c in all_checkpoints])
    rows = [_row(checkpoint, numbers[checkpoint.experiment]) for checkpoint in all_checkpoints]
    upsert(connection, checkpoints, ("store_id", "uid"), rows)
    found = checkpoint_ids(connection, list(given))
    known = [_Known(c, found[c.id], numbers[c.experiment]) for c in all_checkpoints]
    unused = _unlink(connection, [entry.number for entry in known])
    _put_metrics(connection, known)
    _put_tags(connection, known)
    _put_packs(connection, {found[uid]: needed for uid, (_, needed) in given.items()})
    _drop_orphans(connection, unused)


def _row(checkpoint: Checkpoint, experiment: int) -> dict[str, Any]:
    attempt = checkpoint.attempt
    microseconds(checkpoint.created_at)  # refuses a moment without a time zone before anything is written
    return {
        "store_id": current_store(),
        "uid": check_uid(checkpoint.id, "the checkpoint's id"),
        "experiment_id": experiment,
        "status": LIVE,
        "step": check_integer(checkpoint.step, "step"),
        "created_at": checkpoint.created_at,
        "attempt_number": attempt.number,
        "attempt_uid": attempt.id,
        "lineage_uid": attempt.lineage,
        "resumed_from": attempt.resumed_from,
        "resumed_step": attempt.resumed_step,
        "parent_uid": checkpoint.parent and check_uid(checkpoint.parent, "the parent's id"),
        "manifest_key": check_name(checkpoint.key, "the manifest's key", KEY_LENGTH),
        "manifest_digest": check_name(checkpoint.digest, "the manifest's digest", 128),
        "logical_bytes": check_integer(checkpoint.logical_bytes, "logical_bytes"),
        "written_bytes": check_integer(checkpoint.written_bytes, "written_bytes"),
        "tensor_count": check_integer(checkpoint.tensor_count, "tensor_count"),
        "pinned": bool(checkpoint.pinned),
        "metrics": tidy({name: float(value) for name, value in checkpoint.metrics.items()}),
    }


def _put_metrics(connection: Connection, known: Sequence[_Known]) -> None:
    numbers = metric_ids(connection, {(k.experiment, name) for k in known for name in k.checkpoint.metrics})
    rows = [
        {
            "checkpoint_id": entry.number,
            "metric_id": numbers[entry.experiment, name],
            "value": rank,
            "lineage_uid": entry.checkpoint.attempt.lineage,
            "attempt_number": entry.checkpoint.attempt.number,
            "attempt_uid": entry.checkpoint.attempt.id,
            "step": entry.checkpoint.step,
            "checkpoint_uid": entry.checkpoint.id,
        }
        for entry in known
        for name, value in entry.checkpoint.metrics.items()
        if (rank := rank_of(value)) is not None
    ]
    if rows:
        connection.execute(insert(checkpoint_metrics), rows)


def _put_tags(connection: Connection, known: Sequence[_Known]) -> None:
    wanted = {
        (entry.experiment, check_name(tag, "the tag")): entry.number
        for entry in known
        for tag in entry.checkpoint.tags
    }
    rows = [
        {"experiment_id": experiment, "name": tag, "checkpoint_id": number}
        for (experiment, tag), number in sorted(wanted.items())
    ]
    upsert(connection, tags, ("experiment_id", "name"), rows)


def _put_packs(connection: Connection, needed: Mapping[int, Sequence[tuple[str, int]]]) -> None:
    sizes = {
        check_name(name, "the pack's name", KEY_LENGTH): check_integer(size, "the pack's size")
        for listed in needed.values()
        for name, size in listed
    }
    numbers = pack_ids(connection, sizes)
    links = {(number, numbers[name]) for number, listed in needed.items() for name, _ in listed}
    if links:
        rows = [{"checkpoint_id": number, "pack_id": pack} for number, pack in sorted(links)]
        connection.execute(insert(checkpoint_packs), rows)


def _unlink(connection: Connection, numbers: Sequence[int]) -> set[int]:
    """Takes metrics, tags and packs off checkpoints; returns the packs they had."""
    had: set[int] = set()
    for batch in batches(numbers, IN_LIST):
        links = checkpoint_packs.c.checkpoint_id.in_(batch)
        had.update(connection.scalars(select(checkpoint_packs.c.pack_id).where(links)))
        connection.execute(delete(checkpoint_packs).where(links))
        connection.execute(delete(checkpoint_metrics).where(checkpoint_metrics.c.checkpoint_id.in_(batch)))
        connection.execute(delete(tags).where(tags.c.checkpoint_id.in_(batch)))
    return had


def _drop_orphans(connection: Connection, candidates: Collection[int]) -> None:
    """Deletes those packs that no checkpoint names any more."""
    named = exists().where(checkpoint_packs.c.pack_id == packs.c.id)
    for batch in batches(sorted(candidates), IN_LIST):
        connection.execute(delete(packs).where(packs.c.id.in_(batch), ~named))


def forget(connection: Connection, uids: Iterable[str]) -> int:
    """Marks checkpoints as forgotten: they keep their rows and tags, and are found no more unless asked for.

    Returns how many were live until now. Unknown ids are passed over: the catalog may lag behind the store.
    """
    count = 0
    for batch in batches(uids, IN_LIST):
        live = select(checkpoints.c.id).where(_MINE, checkpoints.c.uid.in_(batch), FOUND_ALIVE)
        numbers = list(connection.scalars(live))
        connection.execute(delete(checkpoint_metrics).where(checkpoint_metrics.c.checkpoint_id.in_(numbers)))
        connection.execute(update(checkpoints).where(checkpoints.c.id.in_(numbers)).values(status=FORGOTTEN))
        count += len(numbers)
    return count


def note_listing(connection: Connection, folder: str, word: str) -> None:
    """Notes what a folder of the store looked like when the catalog was in line with it."""
    row = {"store_id": current_store(), "folder": folder, "word": word}
    upsert(connection, listings, ("store_id", "folder"), [row])


def set_tag(connection: Connection, experiment: str, tag: str, uid: str) -> None:
    """Puts a tag on a live checkpoint of the experiment, and off any other. Raises NotFoundError."""
    check_name(tag, "the tag")
    query = select(checkpoints.c.id, checkpoints.c.experiment_id).where(
        _MINE,
        checkpoints.c.uid == uid,
        checkpoints.c.experiment_id == experiment_of(experiment),
        FOUND_ALIVE,
    )
    found = connection.execute(query).one_or_none()
    if found is None:
        raise _not_found(uid, experiment)
    row = {"experiment_id": found.experiment_id, "name": tag, "checkpoint_id": found.id}
    upsert(connection, tags, ("experiment_id", "name"), [row])


def remove_tag(connection: Connection, experiment: str, tag: str) -> bool:
    """Takes a tag off; whether it was there."""
    mine = (tags.c.experiment_id == experiment_of(experiment)) & (tags.c.name == tag)
    return connection.execute(delete(tags).where(mine)).rowcount > 0


def set_pinned(connection: Connection, uid: str, pinned: bool) -> None:
    """Pins or unpins a live checkpoint. Raises NotFoundError."""
    mine = select(checkpoints.c.id).where(_MINE, checkpoints.c.uid == uid, FOUND_ALIVE)
    number = connection.scalar(mine)
    if number is None:
        raise _not_found(uid)
    connection.execute(update(checkpoints).where(checkpoints.c.id == number).values(pinned=pinned))


def _not_found(uid: str, experiment: str | None = None) -> NotFoundError:
    where = f" in experiment {experiment!a}" if experiment is not None else ""
    return NotFoundError(
        f"the catalog has no checkpoint {uid!a}{where}: `ckpt ls` lists what there is",
        kind="checkpoint",
        id=uid,
        experiment=experiment,
    )
