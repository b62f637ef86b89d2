"""What verifications found, and when. The verifying itself is done elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from ckpt_core import clock
from ckpt_core.catalog.schema import integrity_checks
from ckpt_core.catalog.scope import STORE, current_store
from ckpt_core.catalog.types import check_integer, check_name, check_uid, tidy

__all__ = ["IntegrityCheck", "PackCheck", "pack_checks", "record", "record_pack", "recorded"]

_PACK = "pack"
_MINE = integrity_checks.c.store_id == STORE


@dataclass(frozen=True, slots=True)
class IntegrityCheck:
    """One verification: of one checkpoint, or of something else that `detail` names."""

    checkpoint: str | None
    kind: str
    outcome: str
    detail: Mapping[str, Any]
    bytes_checked: int
    at: datetime


@dataclass(frozen=True, slots=True)
class PackCheck:
    """The last time that every byte of a pack was read. `id` is the catalog's own."""

    id: int
    pack: str
    outcome: str
    at: datetime


def record(
    connection: Connection,
    checkpoint: str | None,
    kind: str,
    outcome: str,
    detail: Mapping[str, Any],
    bytes_checked: int,
) -> None:
    """Writes down a verification. The checkpoint need not be in the catalog."""
    row = {
        "store_id": current_store(),
        "at": clock.now(),
        "checkpoint_uid": None if checkpoint is None else check_uid(checkpoint, "the checkpoint's id"),
        "kind": check_name(kind, "the kind of check", 64),
        "outcome": check_name(outcome, "the outcome", 64),
        "detail": tidy(dict(detail)),
        "bytes_checked": check_integer(bytes_checked, "bytes_checked"),
    }
    connection.execute(insert(integrity_checks).values(row))


def recorded(connection: Connection, checkpoint: str | None, limit: int | None) -> list[IntegrityCheck]:
    """Verifications of a checkpoint, or all, the newest first; without those of single packs."""
    query = select(integrity_checks).where(_MINE, integrity_checks.c.kind != _PACK)
    query = query.order_by(integrity_checks.c.id.desc()).limit(limit)
    if checkpoint is not None:
        query = query.where(integrity_checks.c.checkpoint_uid == checkpoint)
    return [
        IntegrityCheck(row.checkpoint_uid, row.kind, row.outcome, row.detail, row.bytes_checked, row.at)
        for row in connection.execute(query)
    ]


def record_pack(
    connection: Connection, pack: str, outcome: str, bytes_checked: int, replaces: int | None
) -> int:
    """Writes down that a pack was read, in place of its last check; returns the id of the row."""
    if replaces is not None:
        connection.execute(delete(integrity_checks).where(_MINE, integrity_checks.c.id == replaces))
    row = {
        "store_id": current_store(),
        "at": clock.now(),
        "checkpoint_uid": None,
        "kind": _PACK,
        "outcome": check_name(outcome, "the outcome", 64),
        "detail": tidy({"pack": pack}),
        "bytes_checked": check_integer(bytes_checked, "bytes_checked"),
    }
    key = connection.execute(insert(integrity_checks).values(row)).inserted_primary_key
    return int(key[0]) if key is not None else 0


def pack_checks(connection: Connection) -> list[PackCheck]:
    """The checks of single packs, the oldest first."""
    query = select(integrity_checks).where(_MINE, integrity_checks.c.kind == _PACK)
    return [
        PackCheck(row.id, str(row.detail.get("pack", "")), row.outcome, row.at)
        for row in connection.execute(query.order_by(integrity_checks.c.id))
    ]
