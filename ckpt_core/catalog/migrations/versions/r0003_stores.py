"""Revision 0003: one database may be the catalog of many stores. What is there belongs to the first that asks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

from ckpt_core.catalog.types import ExactText

revision = "0003"
down_revision = "0002"

# Each with its old unique key, which now holds within a store.
KEYED = (("experiments", "name"), ("packs", "name"), ("checkpoints", "uid"))


def upgrade() -> None:
    stores = op.create_table(
        "stores",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("uid", ExactText(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_stores"),
        sa.UniqueConstraint("uid", name="uq_stores_uid"),
    )
    op.bulk_insert(stores, [{"uid": ""}])
    number = op.get_bind().scalar(sa.text("SELECT id FROM stores"))  # 1, unless this was tried before
    op.drop_index("ix_checkpoints_created", "checkpoints")
    op.drop_index("ix_integrity_checks_checkpoint", "integrity_checks")
    for table in ("experiments", "packs", "checkpoints", "integrity_checks", "audit_log"):
        with op.batch_alter_table(table) as batch:
            batch.add_column(sa.Column("store_id", sa.Integer, nullable=False, server_default=str(number)))
    for table, column in KEYED:
        with op.batch_alter_table(table) as batch:
            _always_given(batch)
            batch.drop_constraint(f"uq_{table}_{column}", type_="unique")
            batch.create_unique_constraint(f"uq_{table}_store_id_{column}", ["store_id", column])
            _refer(batch, table)
    with op.batch_alter_table("integrity_checks") as batch:
        _always_given(batch)
        _refer(batch, "integrity_checks")
    with op.batch_alter_table("audit_log") as batch:
        _always_given(batch)
        batch.drop_constraint("pk_audit_log", type_="primary")
        batch.create_primary_key("pk_audit_log", ["store_id", "id"])
        _refer(batch, "audit_log")
    with op.batch_alter_table("audit_head") as batch:
        batch.alter_column("id", new_column_name="store_id", existing_type=sa.Integer())
    op.execute(f"UPDATE audit_head SET store_id = {number:d}")
    with op.batch_alter_table("audit_head") as batch:
        _refer(batch, "audit_head")
    op.create_index("ix_checkpoints_created", "checkpoints", ["status", "store_id", "created_at", "uid"])
    op.create_index(
        "ix_integrity_checks_checkpoint", "integrity_checks", ["store_id", "checkpoint_uid", "id"]
    )
    op.drop_table("listings")
    op.create_table(
        "listings",
        sa.Column("store_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("folder", ExactText(255), nullable=False),
        sa.Column("word", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("store_id", "folder", name="pk_listings"),
        sa.ForeignKeyConstraint(["store_id"], ["stores.id"], name="fk_listings_store_id"),
    )


def _always_given(batch: BatchOperations) -> None:
    batch.alter_column("store_id", server_default=None, existing_type=sa.Integer(), existing_nullable=False)


def _refer(batch: BatchOperations, table: str) -> None:
    batch.create_foreign_key(f"fk_{table}_store_id", "stores", ["store_id"], ["id"])


def downgrade() -> None:
    bind = op.get_bind()
    there = sa.inspect(bind).has_table("stores")  # unless this was tried before
    if there and bind.scalar(sa.text("SELECT count(*) FROM stores")) != 1:
        raise ValueError("several stores share this catalog, and revision 0002 knows of one only")
    op.drop_table("listings")
    for table in (*(table for table, _ in KEYED), "integrity_checks", "audit_log", "audit_head"):
        with op.batch_alter_table(table) as batch:
            batch.drop_constraint(f"fk_{table}_store_id", type_="foreignkey")
    op.drop_index("ix_checkpoints_created", "checkpoints")
    op.drop_index("ix_integrity_checks_checkpoint", "integrity_checks")
    for table, column in KEYED:
        with op.batch_alter_table(table) as batch:
            batch.drop_constraint(f"uq_{table}_store_id_{column}", type_="unique")
            batch.create_unique_constraint(f"uq_{table}_{column}", [column])
            batch.drop_column("store_id")
    with op.batch_alter_table("integrity_checks") as batch:
        batch.drop_column("store_id")
    with op.batch_alter_table("audit_log") as batch:
        batch.drop_constraint("pk_audit_log", type_="primary")
        batch.create_primary_key("pk_audit_log", ["id"])
        batch.drop_column("store_id")
    with op.batch_alter_table("audit_head") as batch:
        batch.alter_column("store_id", new_column_name="id", existing_type=sa.Integer())
    op.execute("UPDATE audit_head SET id = 1")
    op.create_index("ix_checkpoints_created", "checkpoints", ["status", "created_at", "uid"])
    op.create_index("ix_integrity_checks_checkpoint", "integrity_checks", ["checkpoint_uid", "id"])
    op.drop_table("stores")
    op.create_table(
        "listings",
        sa.Column("folder", ExactText(255), nullable=False),
        sa.Column("word", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("folder", name="pk_listings"),
    )
