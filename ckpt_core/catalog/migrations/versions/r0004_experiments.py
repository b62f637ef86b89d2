"""Revision 0004: what attempts tell of themselves, configurations value by value, tags of experiments."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ckpt_core.catalog.types import ExactText, LongText, UtcMicroseconds

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "attempt_facts",
        sa.Column("attempt_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("started_at", UtcMicroseconds, nullable=False),
        sa.Column("origin", ExactText(255)),
        sa.Column("process", ExactText(255), nullable=False),
        sa.Column("lease_uid", ExactText(64)),
        sa.Column("word_uid", ExactText(64)),
        sa.Column("outcome", ExactText(64)),
        sa.Column("reason", LongText, nullable=False),
        sa.Column("ended_at", UtcMicroseconds),
        sa.Column("config", sa.JSON(none_as_null=True)),
        sa.Column("environment", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("attempt_id", name="pk_attempt_facts"),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempts.id"], name="fk_attempt_facts_attempt_id"),
    )
    op.create_table(
        "config_values",
        sa.Column("attempt_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("path", ExactText(255), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("number", sa.Double),
        sa.Column("text", ExactText(255)),
        sa.PrimaryKeyConstraint("attempt_id", "path", name="pk_config_values"),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempts.id"], name="fk_config_values_attempt_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_config_values_number", "config_values", ["path", "number"])
    op.create_index("ix_config_values_text", "config_values", ["path", "text"])
    op.create_table(
        "experiment_tags",
        sa.Column("experiment_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("name", ExactText(255), nullable=False),
        sa.PrimaryKeyConstraint("experiment_id", "name", name="pk_experiment_tags"),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name="fk_experiment_tags_experiment_id"
        ),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_experiment_tags_name", "experiment_tags", ["name"])


def downgrade() -> None:
    op.drop_table("experiment_tags")
    op.drop_table("config_values")
    op.drop_table("attempt_facts")
