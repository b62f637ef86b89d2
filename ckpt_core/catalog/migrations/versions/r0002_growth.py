"""Revision 0002: the best of all lineages by one step in an index; what the store looked like when it was last
listed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ckpt_core.catalog.types import ExactText

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_index(
        "ix_checkpoint_metrics_best_of_all",
        "checkpoint_metrics",
        ["metric_id", "value", "attempt_number", "attempt_uid", "step", "checkpoint_uid"],
    )
    op.create_table(
        "listings",
        sa.Column("folder", ExactText(255), nullable=False),
        sa.Column("word", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("folder", name="pk_listings"),
    )


def downgrade() -> None:
    op.drop_table("listings")
    op.drop_index("ix_checkpoint_metrics_best_of_all", "checkpoint_metrics")
