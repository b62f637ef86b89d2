"""Which store a transaction is about: one database may be the catalog of many.

A statement that begins at a store's own rows says `table.c.store_id == STORE`; what hangs on these rows needs to
say no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from sqlalchemy import Integer, bindparam

__all__ = ["STORE", "current_store", "in_store"]

_current: ContextVar[int] = ContextVar("ckpt_store")


def current_store() -> int:
    """The catalog's own number of the store."""
    return _current.get()


STORE = bindparam("of_store", callable_=current_store, type_=Integer())
"""The same, inside a statement: looked up when it is sent."""


@contextmanager
def in_store(number: int) -> Iterator[None]:
    """The transactions within are about this store."""
    token = _current.set(number)
    try:
        yield
    finally:
        _current.reset(token)
