"""A way back of the tables where the database cannot undo what of it was done, so that it may stay half gone.

While it lasts, the version's table holds a mark in the place of a revision, which no earlier version of ckpt-core takes
for one that it knows. How far the tables are stands in a table beside it. Nothing here changes the others.
"""

from __future__ import annotations

from sqlalchemy import Column, Connection, MetaData, String, Table, delete, insert, select, update

from ckpt_core.catalog.schema import catalog_version

__all__ = ["begin", "end", "place", "progress", "wanted"]

_MARK = "on its way to "

progress = Table("catalog_way_back", MetaData(), Column("version_num", String(32), nullable=False))


def wanted(found: str | None) -> str | None:
    """The revision that a way back leads to, by what the version's table holds; None where there is none."""
    return found.removeprefix(_MARK) if found is not None and found.startswith(_MARK) else None


def place(connection: Connection) -> str | None:
    """The revision that the tables have come to, or are leaving."""
    return connection.scalar(select(progress.c.version_num))


def begin(connection: Connection, found: str, wanted: str) -> None:
    """Puts up the mark. The first change of a table makes it last."""
    progress.create(connection, checkfirst=True)
    connection.execute(delete(progress))
    connection.execute(insert(progress).values(version_num=found))
    connection.execute(update(catalog_version).values(version_num=_MARK + wanted))


def end(connection: Connection, reached: str) -> None:
    """Takes the mark down."""
    connection.execute(update(catalog_version).values(version_num=reached))
    progress.drop(connection)
