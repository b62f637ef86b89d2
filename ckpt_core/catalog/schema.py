"""The tables of the catalog. What they are for: `docs/catalog.md`; how old catalogs get them: `migrations/`.

Every table has an integer `id` of its own, which nothing outside the catalog ever sees; `uid` is the
identifier that the store uses.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    UniqueConstraint,
)

from ckpt_core.catalog.types import KEY_LENGTH, NAME_LENGTH, UID_LENGTH, ExactText, LongText, UtcMicroseconds

__all__ = ["HEAD", "REVISIONS", "metadata"]

REVISIONS = ("0001", "0002", "0003", "0004", "0005")
"""Every revision that this version can bring up to date, the oldest first."""
HEAD = REVISIONS[-1]

LIVE = "live"
FORGOTTEN = "forgotten"

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def _uid(name: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, ExactText(UID_LENGTH), nullable=nullable)


# As Alembic would make it: a fresh catalog is stamped without importing Alembic.
catalog_version = Table(
    "catalog_version",
    metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="catalog_version_pkc"),
)

# One database may be the catalog of many stores. The one without a uid belongs to the first that asks.
stores = Table(
    "stores",
    metadata,
    Column("id", Integer, primary_key=True),
    _uid("uid"),
    UniqueConstraint("uid"),
)


def _store(*, primary_key: bool = False) -> Column[int]:
    return Column(
        *("store_id", Integer, ForeignKey("stores.id")),
        primary_key=primary_key,
        autoincrement=False,
        nullable=False,
    )


experiments = Table(
    "experiments",
    metadata,
    Column("id", Integer, primary_key=True),
    _store(),
    Column("name", ExactText(NAME_LENGTH), nullable=False),
    UniqueConstraint("store_id", "name"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("experiment_id", Integer, ForeignKey("experiments.id"), nullable=False),
    _uid("uid"),
    Column("number", BigInteger, nullable=False),
    _uid("lineage_uid"),
    _uid("resumed_from", nullable=True),
    Column("resumed_step", BigInteger),
    UniqueConstraint("experiment_id", "uid"),
    Index("ix_attempts_order", "experiment_id", "number", "uid"),
    Index("ix_attempts_lineage", "experiment_id", "lineage_uid", "number", "uid"),
)

# What an attempt's own documents tell of it: there is no row for one that an earlier version made. `word_uid`
# names the last of what it said, `outcome` is what that was.
attempt_facts = Table(
    "attempt_facts",
    metadata,
    Column("attempt_id", Integer, ForeignKey("attempts.id"), primary_key=True, autoincrement=False),
    Column("started_at", UtcMicroseconds, nullable=False),
    Column("origin", ExactText(NAME_LENGTH)),
    Column("process", ExactText(NAME_LENGTH), nullable=False),
    _uid("lease_uid", nullable=True),
    _uid("word_uid", nullable=True),
    Column("outcome", ExactText(64)),
    Column("reason", LongText, nullable=False),
    Column("ended_at", UtcMicroseconds),
    Column("config", JSON(none_as_null=True)),
    Column("environment", JSON, nullable=False),
)

# The values of a configuration one by one, since databases disagree about how to ask a JSON column.
config_values = Table(
    "config_values",
    metadata,
    Column("attempt_id", Integer, ForeignKey("attempts.id"), primary_key=True, autoincrement=False),
    Column("path", ExactText(NAME_LENGTH), primary_key=True),
    Column("kind", String(8), nullable=False),
    Column("number", Double),
    Column("text", ExactText(NAME_LENGTH)),
    Index("ix_config_values_number", "path", "number"),
    Index("ix_config_values_text", "path", "text"),
    sqlite_with_rowid=False,
)

experiment_tags = Table(
    "experiment_tags",
    metadata,
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True, autoincrement=False),
    Column("name", ExactText(NAME_LENGTH), primary_key=True),
    Index("ix_experiment_tags_name", "name"),
    sqlite_with_rowid=False,
)

# The attempt is spelt out in each row: it is what the manifest says, whatever the attempts table holds,
# and the indexes below need it to give the newest checkpoint without sorting.
checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", Integer, primary_key=True),
    _store(),
    _uid("uid"),
    Column("experiment_id", Integer, ForeignKey("experiments.id"), nullable=False),
    Column("status", String(16), nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("created_at", UtcMicroseconds, nullable=False),
    Column("attempt_number", BigInteger, nullable=False),
    _uid("attempt_uid"),
    _uid("lineage_uid"),
    _uid("resumed_from", nullable=True),
    Column("resumed_step", BigInteger),
    _uid("parent_uid", nullable=True),
    Column("manifest_key", ExactText(KEY_LENGTH), nullable=False),
    Column("manifest_digest", ExactText(128), nullable=False),
    Column("logical_bytes", BigInteger, nullable=False),
    Column("written_bytes", BigInteger, nullable=False),
    Column("tensor_count", BigInteger, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("metrics", JSON, nullable=False),
    UniqueConstraint("store_id", "uid"),
    CheckConstraint(f"status IN ('{LIVE}', '{FORGOTTEN}')", name="status"),
    Index("ix_checkpoints_order", "experiment_id", "status", "attempt_number", "attempt_uid", "step", "uid"),
    Index(
        "ix_checkpoints_lineage",
        *("experiment_id", "status", "lineage_uid", "attempt_number", "attempt_uid", "step", "uid"),
    ),
    Index(
        "ix_checkpoints_step",
        *("experiment_id", "status", "step", "attempt_number", "attempt_uid", "uid"),
    ),
    Index("ix_checkpoints_created", "status", "store_id", "created_at", "uid"),
    Index("ix_checkpoints_pinned", "experiment_id", "pinned"),
)

# Two ways to say the same. Indexes of lists have the status in front of the order, for `IS_LIVE`. SQLite,
# which knows no frequencies, would take such an index also to find one id among a million live ones: where
# the id is given, `FOUND_ALIVE` can only be checked on what was found.
IS_LIVE = checkpoints.c.status == LIVE
FOUND_ALIVE = checkpoints.c.status != FORGOTTEN

metric_names = Table(
    "metric_names",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("experiment_id", Integer, ForeignKey("experiments.id"), nullable=False),
    Column("name", ExactText(NAME_LENGTH), nullable=False),
    UniqueConstraint("experiment_id", "name"),
)

# Only of live checkpoints, and only what can be compared: `best` walks the index from its end and stops.
# The last four columns of the index are the order of checkpoints, so that a tie goes to the older one
# without a sort, also where a million checkpoints share one value.
checkpoint_metrics = Table(
    "checkpoint_metrics",
    metadata,
    Column("checkpoint_id", Integer, ForeignKey("checkpoints.id"), primary_key=True, autoincrement=False),
    Column("metric_id", Integer, ForeignKey("metric_names.id"), primary_key=True, autoincrement=False),
    Column("value", Double, nullable=False),
    _uid("lineage_uid"),
    Column("attempt_number", BigInteger, nullable=False),
    _uid("attempt_uid"),
    Column("step", BigInteger, nullable=False),
    _uid("checkpoint_uid"),
    Index(
        "ix_checkpoint_metrics_best",
        *("metric_id", "lineage_uid", "value", "attempt_number", "attempt_uid", "step", "checkpoint_uid"),
    ),
    Index(
        "ix_checkpoint_metrics_best_of_all",
        *("metric_id", "value", "attempt_number", "attempt_uid", "step", "checkpoint_uid"),
    ),
    sqlite_with_rowid=False,
)

experiment_metrics = Table(
    "experiment_metrics",
    metadata,
    Column("attempt_id", Integer, ForeignKey("attempts.id"), primary_key=True, autoincrement=False),
    Column("metric_id", Integer, ForeignKey("metric_names.id"), primary_key=True, autoincrement=False),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("value", Double),
    Column("special", String(8)),
    Column("at", UtcMicroseconds, nullable=False),
    CheckConstraint("(value IS NULL) <> (special IS NULL)", name="one_value"),
    sqlite_with_rowid=False,
)

tags = Table(
    "tags",
    metadata,
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True, autoincrement=False),
    Column("name", ExactText(NAME_LENGTH), primary_key=True),
    Column("checkpoint_id", Integer, ForeignKey("checkpoints.id"), nullable=False, index=True),
)

packs = Table(
    "packs",
    metadata,
    Column("id", Integer, primary_key=True),
    _store(),
    Column("name", ExactText(KEY_LENGTH), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    UniqueConstraint("store_id", "name"),
)

checkpoint_packs = Table(
    "checkpoint_packs",
    metadata,
    Column("checkpoint_id", Integer, ForeignKey("checkpoints.id"), primary_key=True, autoincrement=False),
    Column("pack_id", Integer, ForeignKey("packs.id"), primary_key=True, autoincrement=False, index=True),
    sqlite_with_rowid=False,
)

# What a folder of the store looked like when the catalog was last in line with it, by the encoded name of the
# experiment: while it still looks so, nobody has to list it.
listings = Table(
    "listings",
    metadata,
    _store(primary_key=True),
    Column("folder", ExactText(NAME_LENGTH), primary_key=True),
    Column("word", String(255), nullable=False),
)

# History: it names checkpoints and outlives their rows, so no foreign keys.
integrity_checks = Table(
    "integrity_checks",
    metadata,
    Column("id", Integer, primary_key=True),
    _store(),
    Column("at", UtcMicroseconds, nullable=False),
    _uid("checkpoint_uid", nullable=True),
    Column("kind", ExactText(64), nullable=False),
    Column("outcome", ExactText(64), nullable=False),
    Column("detail", JSON, nullable=False),
    Column("bytes_checked", BigInteger, nullable=False),
    Index("ix_integrity_checks_checkpoint", "store_id", "checkpoint_uid", "id"),
)

# `detail` is text, not JSON: a hash is of characters, and databases rewrite JSON in their own hand.
audit_log = Table(
    "audit_log",
    metadata,
    _store(primary_key=True),
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("at", UtcMicroseconds, nullable=False),
    Column("actor", ExactText(NAME_LENGTH), nullable=False),
    Column("event", ExactText(64), nullable=False),
    Column("subject", LongText, nullable=False),
    Column("outcome", ExactText(64), nullable=False),
    Column("detail", LongText, nullable=False),
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Index("ix_audit_log_event", "store_id", "event", "id"),
)

# One row of each store, locked by whoever appends: it gives the next link its place, and tells if the last
# ones vanish.
audit_head = Table(
    "audit_head",
    metadata,
    _store(primary_key=True),
    Column("last_id", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
)
