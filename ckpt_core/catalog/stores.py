"""The stores that share a database, each with a number of the catalog's own."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select, update

from ckpt_core.catalog import audit
from ckpt_core.catalog.dialect import insert_new
from ckpt_core.catalog.engine import Database
from ckpt_core.catalog.schema import stores
from ckpt_core.catalog.scope import in_store
from ckpt_core.catalog.types import check_uid
from ckpt_core.errors import UsageError

__all__ = ["begin", "enter", "known"]

_NOBODY = ""


def begin(connection: Connection) -> None:
    """A new catalog belongs to nobody yet."""
    connection.execute(insert(stores).values(uid=_NOBODY))
    _begin_chain(connection, _NOBODY)


def known(connection: Connection) -> dict[str, int]:
    """The number of each store by its id; "" for what is nobody's yet."""
    return {row.uid: row.id for row in connection.execute(select(stores).order_by(stores.c.id))}


def enter(database: Database, uid: str | None) -> int:
    """The number of a store, which takes over what is nobody's yet, or is added; without `uid`, of the only one.

    Raises UsageError (kind `store`) where it must be said which.
    """
    with database.reading() as connection:
        found = known(connection)
    if uid is None:
        if len(found) > 1:
            raise UsageError(
                f"the catalog {database} is shared by {len(found)} stores: say whose, by store= and the id in its "
                f"store.json, one of {', '.join(sorted(found))}",
                kind="store",
            )
        return next(iter(found.values()))
    if check_uid(uid, "the store's id") in found:
        return found[uid]
    if database.read_only and _NOBODY in found:
        return found[_NOBODY]
    return database.write(_admit, uid)


def _admit(connection: Connection, uid: str) -> int:
    claimed = connection.execute(update(stores).where(stores.c.uid == _NOBODY).values(uid=uid)).rowcount
    if not claimed:
        insert_new(connection, stores, [{"uid": uid}])
        _begin_chain(connection, uid)
    return known(connection)[uid]


def _begin_chain(connection: Connection, uid: str) -> None:
    with in_store(known(connection)[uid]):
        audit.begin_chain(connection)
