"""Which rows of any table belong to a store: those that say so, and those that hang on a row that does."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Table, select

from ckpt_core.catalog.scope import STORE

__all__ = ["of_store"]


def of_store(table: Table) -> ColumnElement[bool]:
    """The condition, for any table but that of the stores themselves."""
    if "store_id" in table.c:
        return table.c.store_id == STORE
    key = next(iter(sorted(table.foreign_keys, key=lambda key: key.parent.name)))
    parents = key.column.table
    return key.parent.in_(select(key.column).where(of_store(parents)))
