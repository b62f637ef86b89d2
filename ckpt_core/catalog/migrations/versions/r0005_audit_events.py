"""Revision 0005: the entries of the audit trail that tell of one kind of event, the newest first, by an index."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_index("ix_audit_log_event", "audit_log", ["store_id", "event", "id"])


def downgrade() -> None:
    op.drop_index("ix_audit_log_event", "audit_log")
