"""Revision 0001: the first catalog."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ckpt_core.catalog.types import ExactText, LongText, UtcMicroseconds

revision = "0001"
down_revision = None

ORDER = ("attempt_number", "attempt_uid", "step")


def upgrade() -> None:
    _experiments()
    _checkpoints()
    _metrics()
    _tags_and_packs()
    _history()


def downgrade() -> None:
    for table in (
        *("audit_head", "audit_log", "integrity_checks", "checkpoint_packs", "packs", "tags"),
        *(
            "experiment_metrics",
            "checkpoint_metrics",
            "metric_names",
            "checkpoints",
            "attempts",
            "experiments",
        ),
    ):
        op.drop_table(table)


def _experiments() -> None:
    op.create_table(
        "experiments",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", ExactText(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_experiments"),
        sa.UniqueConstraint("name", name="uq_experiments_name"),
    )
    op.create_table(
        "attempts",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("experiment_id", sa.Integer, nullable=False),
        sa.Column("uid", ExactText(64), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("lineage_uid", ExactText(64), nullable=False),
        sa.Column("resumed_from", ExactText(64)),
        sa.Column("resumed_step", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
        sa.UniqueConstraint("experiment_id", "uid", name="uq_attempts_experiment_id_uid"),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name="fk_attempts_experiment_id"),
    )
    op.create_index("ix_attempts_order", "attempts", ["experiment_id", "number", "uid"])
    op.create_index("ix_attempts_lineage", "attempts", ["experiment_id", "lineage_uid", "number", "uid"])


def _checkpoints() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("uid", ExactText(64), nullable=False),
        sa.Column("experiment_id", sa.Integer, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("created_at", UtcMicroseconds, nullable=False),
        sa.Column("attempt_number", sa.BigInteger, nullable=False),
        sa.Column("attempt_uid", ExactText(64), nullable=False),
        sa.Column("lineage_uid", ExactText(64), nullable=False),
        sa.Column("resumed_from", ExactText(64)),
        sa.Column("resumed_step", sa.BigInteger),
        sa.Column("parent_uid", ExactText(64)),
        sa.Column("manifest_key", ExactText(700), nullable=False),
        sa.Column("manifest_digest", ExactText(128), nullable=False),
        sa.Column("logical_bytes", sa.BigInteger, nullable=False),
        sa.Column("written_bytes", sa.BigInteger, nullable=False),
        sa.Column("tensor_count", sa.BigInteger, nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoints"),
        sa.UniqueConstraint("uid", name="uq_checkpoints_uid"),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name="fk_checkpoints_experiment_id"),
        sa.CheckConstraint("status IN ('live', 'forgotten')", name="ck_checkpoints_status"),
    )
    op.create_index("ix_checkpoints_order", "checkpoints", ["experiment_id", "status", *ORDER, "uid"])
    op.create_index(
        "ix_checkpoints_lineage", "checkpoints", ["experiment_id", "status", "lineage_uid", *ORDER, "uid"]
    )
    op.create_index(
        "ix_checkpoints_step",
        "checkpoints",
        ["experiment_id", "status", "step", "attempt_number", "attempt_uid", "uid"],
    )
    op.create_index("ix_checkpoints_created", "checkpoints", ["status", "created_at", "uid"])
    op.create_index("ix_checkpoints_pinned", "checkpoints", ["experiment_id", "pinned"])


def _metrics() -> None:
    op.create_table(
        "metric_names",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("experiment_id", sa.Integer, nullable=False),
        sa.Column("name", ExactText(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_metric_names"),
        sa.UniqueConstraint("experiment_id", "name", name="uq_metric_names_experiment_id_name"),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name="fk_metric_names_experiment_id"),
    )
    op.create_table(
        "checkpoint_metrics",
        sa.Column("checkpoint_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("metric_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("lineage_uid", ExactText(64), nullable=False),
        sa.Column("attempt_number", sa.BigInteger, nullable=False),
        sa.Column("attempt_uid", ExactText(64), nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("checkpoint_uid", ExactText(64), nullable=False),
        sa.PrimaryKeyConstraint("checkpoint_id", "metric_id", name="pk_checkpoint_metrics"),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name="fk_checkpoint_metrics_checkpoint_id"
        ),
        sa.ForeignKeyConstraint(["metric_id"], ["metric_names.id"], name="fk_checkpoint_metrics_metric_id"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_checkpoint_metrics_best",
        "checkpoint_metrics",
        ["metric_id", "lineage_uid", "value", *ORDER, "checkpoint_uid"],
    )
    op.create_table(
        "experiment_metrics",
        sa.Column("attempt_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("metric_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("step", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("special", sa.String(8)),
        sa.Column("at", UtcMicroseconds, nullable=False),
        sa.PrimaryKeyConstraint("attempt_id", "metric_id", "step", name="pk_experiment_metrics"),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempts.id"], name="fk_experiment_metrics_attempt_id"),
        sa.ForeignKeyConstraint(["metric_id"], ["metric_names.id"], name="fk_experiment_metrics_metric_id"),
        sa.CheckConstraint("(value IS NULL) <> (special IS NULL)", name="ck_experiment_metrics_one_value"),
        sqlite_with_rowid=False,
    )


def _tags_and_packs() -> None:
    op.create_table(
        "tags",
        sa.Column("experiment_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("name", ExactText(255), nullable=False),
        sa.Column("checkpoint_id", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("experiment_id", "name", name="pk_tags"),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name="fk_tags_experiment_id"),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoints.id"], name="fk_tags_checkpoint_id"),
    )
    op.create_index("ix_tags_checkpoint_id", "tags", ["checkpoint_id"])
    op.create_table(
        "packs",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", ExactText(700), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_packs"),
        sa.UniqueConstraint("name", name="uq_packs_name"),
    )
    op.create_table(
        "checkpoint_packs",
        sa.Column("checkpoint_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("pack_id", sa.Integer, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("checkpoint_id", "pack_id", name="pk_checkpoint_packs"),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name="fk_checkpoint_packs_checkpoint_id"
        ),
        sa.ForeignKeyConstraint(["pack_id"], ["packs.id"], name="fk_checkpoint_packs_pack_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_checkpoint_packs_pack_id", "checkpoint_packs", ["pack_id"])


def _history() -> None:
    op.create_table(
        "integrity_checks",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("at", UtcMicroseconds, nullable=False),
        sa.Column("checkpoint_uid", ExactText(64)),
        sa.Column("kind", ExactText(64), nullable=False),
        sa.Column("outcome", ExactText(64), nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.Column("bytes_checked", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_integrity_checks"),
    )
    op.create_index("ix_integrity_checks_checkpoint", "integrity_checks", ["checkpoint_uid", "id"])
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("at", UtcMicroseconds, nullable=False),
        sa.Column("actor", ExactText(255), nullable=False),
        sa.Column("event", ExactText(64), nullable=False),
        sa.Column("subject", LongText, nullable=False),
        sa.Column("outcome", ExactText(64), nullable=False),
        sa.Column("detail", LongText, nullable=False),
        sa.Column("previous_hash", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
    )
    head = op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("last_id", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_head"),
    )
    op.bulk_insert(head, [{"id": 1, "last_id": 0, "hash": "0" * 64}])
