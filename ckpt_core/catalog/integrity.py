"""What verifications found, and when. The verifying itself is done elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from ckpt_core import clock
from ckpt_core.catalog.schema import integrity_checks
from ckpt_core.catalog.types import check_integer, check_name, check_uid, tidy

__all__ = ["IntegrityCheck", "record", "recorded"]


@dataclass(frozen=True, slots=True)
class IntegrityCheck:
    """One verification: of one checkpoint, or of something else that `detail` names."""

    checkpoint: str | None
    kind: str
    outcome: str
    detail: Mapping[str, Any]
    bytes_checked: int
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
        "at": clock.now(),
        "checkpoint_uid": None if checkpoint is None else check_uid(checkpoint, "the checkpoint's id"),
        "kind": check_name(kind, "the kind of check", 64),
        "outcome": check_name(outcome, "the outcome", 64),
        "detail": tidy(dict(detail)),
        "bytes_checked": check_integer(bytes_checked, "bytes_checked"),
    }
    connection.execute(insert(integrity_checks).values(row))


def recorded(connection: Connection, checkpoint: str | None, limit: int | None) -> list[IntegrityCheck]:
    """Verifications of a checkpoint, or all, the newest first."""
    query = select(integrity_checks).order_by(integrity_checks.c.id.desc()).limit(limit)
    if checkpoint is not None:
        query = query.where(integrity_checks.c.checkpoint_uid == checkpoint)
    return [
        IntegrityCheck(row.checkpoint_uid, row.kind, row.outcome, row.detail, row.bytes_checked, row.at)
        for row in connection.execute(query)
    ]
