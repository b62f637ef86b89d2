"""The audit trail: who changed what, when, and how it ended, each entry chained to the one before by SHA-256;
one chain for each store.

The chain shows that an entry was altered, removed or slipped in. It does not stop whoever can write to the
database from making a new chain.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from ckpt_core import clock
from ckpt_core.catalog.dialect import exactly, insert_new
from ckpt_core.catalog.schema import audit_head, audit_log
from ckpt_core.catalog.scope import STORE, current_store
from ckpt_core.catalog.types import NAME_LENGTH, from_json, microseconds, tidy, to_json

__all__ = ["AuditEntry", "append", "begin_chain", "count", "entries", "first_broken", "who"]

_GENESIS = "0" * 64
_MINE = audit_log.c.store_id == STORE
_MY_HEAD = audit_head.c.store_id == STORE


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One entry of the audit trail."""

    id: int
    at: datetime
    actor: str
    event: str
    subject: str
    outcome: str
    detail: Mapping[str, Any]
    hash: str


def who() -> str:
    """This process, as `user@host:pid`."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user often has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}:{os.getpid()}"


def begin_chain(connection: Connection) -> None:
    """The head of an empty chain, for a new store."""
    insert_new(connection, audit_head, [{"store_id": current_store(), "last_id": 0, "hash": _GENESIS}])


def append(
    connection: Connection,
    event: str,
    subject: str,
    outcome: str,
    detail: Mapping[str, Any],
    actor: str | None,
) -> int:
    """Appends an entry; returns its id. Whatever the arguments hold is written down somehow: an audit that
    refuses to record a strange name would miss what matters most."""
    # Appenders queue at the head row: two that read one hash would fork the chain.
    head = connection.execute(select(audit_head).where(_MY_HEAD).with_for_update()).one()
    row: dict[str, Any] = {
        "store_id": current_store(),
        "id": head.last_id + 1,
        "at": clock.now(),
        "actor": tidy(actor or who())[:NAME_LENGTH],
        "event": tidy(event)[:64],
        "subject": tidy(subject),
        "outcome": tidy(outcome)[:64],
        "detail": to_json(tidy(dict(detail))),
        "previous_hash": head.hash,
    }
    row["hash"] = _link(row)
    connection.execute(insert(audit_log).values(row))
    connection.execute(update(audit_head).where(_MY_HEAD).values(last_id=row["id"], hash=row["hash"]))
    return int(row["id"])


def entries(
    connection: Connection, limit: int | None, events: Collection[str] = (), subject: str | None = None
) -> list[AuditEntry]:
    """The newest entries, the newest first: all, or those of some events, each by itself found by an index."""
    found: list[AuditEntry] = []
    mine = [_MINE] if subject is None else [_MINE, exactly(connection, audit_log.c.subject) == subject]
    for only in [[audit_log.c.event == event] for event in sorted(set(events))] or [[]]:
        asked = [*mine, *only]
        rows = connection.execute(
            select(audit_log).where(*asked).order_by(audit_log.c.id.desc()).limit(limit)
        )
        found.extend(
            AuditEntry(
                row.id,
                row.at,
                row.actor,
                row.event,
                row.subject,
                row.outcome,
                from_json(row.detail),
                row.hash,
            )
            for row in rows
        )
    return sorted(found, key=lambda entry: entry.id, reverse=True)[:limit]


def count(connection: Connection, events: Collection[str] = ()) -> int:
    """How many entries there are: all, or those of some events."""
    asked = [_MINE, audit_log.c.event.in_(sorted(events))] if events else [_MINE]
    return connection.scalar(select(func.count()).select_from(audit_log).where(*asked)) or 0


def first_broken(connection: Connection) -> int | None:
    """The id of the first entry that is not as it was written, or is missing; None where all are well."""
    expected, previous = 1, _GENESIS
    query = select(audit_log).where(_MINE).order_by(audit_log.c.id)
    with connection.execute(query, execution_options={"yield_per": 1000}) as rows:
        for row in rows.mappings():
            if row["id"] != expected or row["previous_hash"] != previous or row["hash"] != _link(row):
                return expected if row["id"] > expected else int(row["id"])
            expected, previous = expected + 1, row["hash"]
    head = connection.execute(select(audit_head).where(_MY_HEAD)).one_or_none()
    if head is None or head.last_id >= expected:
        return expected  # entries at the end are gone
    return None if head.hash == previous and head.last_id == expected - 1 else expected - 1


def _link(row: Mapping[Any, Any]) -> str:
    fields = ("id", "actor", "event", "subject", "outcome", "detail")
    content = {name: row[name] for name in fields} | {"at": microseconds(row["at"])}
    return hashlib.sha256((row["previous_hash"] + to_json(content)).encode("ascii")).hexdigest()
