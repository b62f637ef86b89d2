"""What Alembic runs to reach the database: the connection, and the transaction, that it was given."""

from __future__ import annotations

from typing import Any

from alembic import context
from alembic.ddl.mysql import MariaDBImpl, MySQLImpl
from sqlalchemy.exc import DBAPIError

_DONE = {
    *(1050, 1051),  # the table exists, does not
    *(1060, 1054),  # the column exists, does not
    *(1061, 1091),  # the key exists, does not
    *(1826,),  # the foreign key exists
    *(1068, 1553),  # the primary key exists, is in use
    *(1062,),  # the row exists
}


class _Resuming:
    """MySQL undoes no change of a table: after a failure the next run passes over what is done already."""

    def _exec(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super()._exec(*arguments, **options)  # type: ignore[misc]
        except DBAPIError as error:
            code, message = error.orig.args[:2] if error.orig is not None else (0, "")
            if code not in _DONE and not (
                code == 1005 and "errno: 121" in message
            ):  # MariaDB's word for 1826
                raise
            return None


class _MySQL(_Resuming, MySQLImpl):
    __dialect__ = "mysql"


class _MariaDB(_Resuming, MariaDBImpl):
    __dialect__ = "mariadb"


attributes = context.config.attributes
# SQLite cannot alter most of a table: in batch mode Alembic copies it.
context.configure(
    connection=attributes["connection"], version_table=attributes["version_table"], render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
