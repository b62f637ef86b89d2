"""What Alembic runs to reach the database: the connection, and the transaction, that it was given."""

from __future__ import annotations

from alembic import context

attributes = context.config.attributes
# SQLite cannot alter most of a table: in batch mode Alembic copies it.
context.configure(
    connection=attributes["connection"], version_table=attributes["version_table"], render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
