"""The catalog as the rest of the engine sees it: each method is one question or one transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, final

from ckpt_core.catalog import (
    audit,
    backups,
    checkpoints,
    dialect,
    experiments,
    integrity,
    metrics,
    migrate,
    queries,
    stores,
)
from ckpt_core.catalog.audit import AuditEntry
from ckpt_core.catalog.checkpoints import Entry
from ckpt_core.catalog.engine import Database
from ckpt_core.catalog.identities import IN_LIST, batches
from ckpt_core.catalog.integrity import IntegrityCheck, PackCheck
from ckpt_core.catalog.rebuild import Rebuild
from ckpt_core.configuration import Condition
from ckpt_core.model import Attempt, AttemptFacts, Checkpoint, ExperimentFacts, ExperimentSummary, MetricPoint

__all__ = ["Catalog"]


@final
class Catalog:
    """The SQL index of experiments, checkpoints and metrics. Made by `Catalog.open`.

    It is that of one store, though others may share its database. All methods may be called from any thread.
    Each that writes is one transaction (those that take an iterable: one for each batch, and the iterable is
    read outside of it), safe to repeat, and raises CatalogError, whose kinds are in `docs/catalog.md`; UsageError
    for a value that cannot be stored. Datetimes are aware and in UTC.
    """

    def __init__(self, database: Database, store: str | None = None) -> None:
        self._database = database
        database.store = stores.enter(database, store)

    @classmethod
    def open(cls, url: str, *, store: str | None = None, timeout: float = 30.0) -> Self:
        """The catalog at an SQLAlchemy URL, created or upgraded first where it must be.

        `store`: the id of the store that it is about, since several may share a database; left out, the only one
        that is there. `timeout`: seconds to wait for other writers. Raises CatalogError, UsageError (kind `store`
        where there are several), MissingExtraError, and FormatError for a catalog that a newer version made.
        """
        database = Database.open(url, timeout=timeout)
        try:
            migrate.bring_up_to_date(database)
            return cls(database, store)
        except BaseException:
            database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections. May be called again."""
        self._database.close()

    @property
    def url(self) -> str:
        """Where the catalog is, without any password."""
        return str(self._database)

    @property
    def database(self) -> str:
        """The database's name and version, as "PostgreSQL 15.8". Raises CatalogError."""
        with self._database.reading() as connection:
            return dialect.described(connection)

    # -- checkpoints, written

    def put_checkpoint(self, checkpoint: Checkpoint, packs: Sequence[tuple[str, int]]) -> None:
        """Adds a checkpoint, or overwrites it: its metrics, tags, pin and packs become what is given.

        `packs`: name and size of each. A forgotten checkpoint is live again; a tag that another checkpoint
        of the experiment had moves.
        """
        self._database.write(checkpoints.put, [(checkpoint, packs)])

    def put_checkpoints(self, entries: Iterable[Entry]) -> int:
        """`put_checkpoint` for many, in batches; returns how many."""
        count = 0
        for batch in batches(entries, IN_LIST):
            self._database.write(checkpoints.put, batch)
            count += len(batch)
        return count

    def forget_checkpoints(self, ids: Iterable[str]) -> int:
        """Marks checkpoints as forgotten; returns how many were live. Unknown ids are passed over."""
        return self._database.write(checkpoints.forget, list(ids))

    def set_tag(self, experiment: str, tag: str, checkpoint_id: str) -> None:
        """Puts a tag on a live checkpoint of the experiment and off any other. Raises NotFoundError."""
        self._database.write(checkpoints.set_tag, experiment, tag, checkpoint_id)

    def remove_tag(self, experiment: str, tag: str) -> bool:
        """Takes a tag off; whether it was there."""
        return self._database.write(checkpoints.remove_tag, experiment, tag)

    def set_pinned(self, checkpoint_id: str, pinned: bool) -> None:
        """Pins or unpins a live checkpoint. Raises NotFoundError."""
        self._database.write(checkpoints.set_pinned, checkpoint_id, pinned)

    def note_listing(self, folder: str, word: str) -> None:
        """Notes what a folder of the store looked like, now that the catalog is in line with it."""
        self._database.write(checkpoints.note_listing, folder, word)

    # -- checkpoints, read

    def checkpoint(self, checkpoint_id: str, *, include_forgotten: bool = False) -> Checkpoint | None:
        """The checkpoint of this id; None where there is none."""
        with self._database.reading() as connection:
            return queries.one(connection, checkpoint_id, include_forgotten)

    def find_prefix(self, prefix: str, experiment: str | None = None, limit: int = 10) -> list[Checkpoint]:
        """Checkpoints whose id begins with `prefix` (upper case, as ids are), by id."""
        with self._database.reading() as connection:
            return queries.find_prefix(connection, prefix, experiment, limit)

    def checkpoints(
        self,
        experiment: str | None = None,
        *,
        lineage: str | None = None,
        tag: str | None = None,
        step: int | None = None,
        newest_first: bool = False,
        limit: int | None = None,
        offset: int = 0,
        include_forgotten: bool = False,
    ) -> list[Checkpoint]:
        """Checkpoints that meet every condition given.

        Ordered by `Checkpoint.order`; across experiments by `created_at`, since orders of different
        experiments have nothing to do with each other.
        """
        with self._database.reading() as connection:
            return queries.listing(
                connection,
                experiment,
                lineage=lineage,
                tag=tag,
                step=step,
                newest_first=newest_first,
                limit=limit,
                offset=offset,
                include_forgotten=include_forgotten,
            )

    def ids(self, experiment: str | None = None, *, include_forgotten: bool = False) -> set[str]:
        """The ids of all checkpoints of an experiment, or of all experiments."""
        with self._database.reading() as connection:
            return queries.ids(connection, experiment, include_forgotten)

    def empty(self) -> bool:
        """Whether there is no experiment: none with a checkpoint, an attempt, a metric or a tag."""
        with self._database.reading() as connection:
            return queries.none_at_all(connection)

    def experiment_names(self) -> list[str]:
        """The experiments that have checkpoints, sorted."""
        with self._database.reading() as connection:
            return queries.experiment_names(connection)

    def count(self, experiment: str) -> int:
        """How many checkpoints an experiment has."""
        with self._database.reading() as connection:
            return queries.count(connection, experiment)

    def steps(self, experiment: str) -> dict[str, int]:
        """The id of every checkpoint of an experiment, with its step: what the name of its manifest says."""
        with self._database.reading() as connection:
            return queries.steps(connection, experiment)

    def nearest_step(self, experiment: str, step: int) -> int | None:
        """The step nearest to `step` that has a checkpoint; None where there is none at all."""
        with self._database.reading() as connection:
            return queries.nearest_step(connection, experiment, step)

    def listing_word(self, folder: str) -> str | None:
        """What `note_listing` noted of a folder, unless checkpoints were dropped or all was rebuilt since."""
        with self._database.reading() as connection:
            return queries.listing_word(connection, folder)

    def newest(self, experiment: str) -> Checkpoint | None:
        """The newest checkpoint of the newest attempt that saved; None where nothing was saved."""
        with self._database.reading() as connection:
            return queries.newest(connection, experiment)

    def best(
        self,
        experiment: str,
        metric: str,
        mode: Literal["min", "max"],
        lineage: str | None = None,
        limit: int = 1,
    ) -> list[Checkpoint]:
        """The best checkpoints by a metric, the best first; ties to the older; NaN is never best.

        Without `lineage` of all lineages of the experiment.
        """
        with self._database.reading() as connection:
            return queries.best(connection, experiment, metric, mode, lineage, limit)

    def packs(self, checkpoint_id: str) -> list[tuple[str, int]]:
        """Name and size of each pack that a checkpoint needs, by name."""
        with self._database.reading() as connection:
            return queries.pack_list(connection, checkpoint_id)

    def packs_by_key(self) -> dict[str, list[str]]:
        """For the key of each live manifest the names of the packs it needs: what prune asks."""
        with self._database.reading() as connection:
            return queries.packs_by_key(connection)

    def pinned(self, experiment: str) -> set[str]:
        """The ids of the pinned checkpoints of an experiment."""
        with self._database.reading() as connection:
            return queries.pinned_ids(connection, experiment)

    def tags(self, experiment: str) -> dict[str, str]:
        """Each tag of an experiment and the id of its checkpoint, by name."""
        with self._database.reading() as connection:
            return queries.tags_of(connection, experiment)

    def experiments(self) -> list[ExperimentSummary]:
        """Every experiment, by name. Sums over all checkpoints: for people, not for loops."""
        with self._database.reading() as connection:
            return queries.summaries(connection)

    # -- attempts and tags of experiments

    def put_attempts(self, facts: Iterable[AttemptFacts]) -> None:
        """Adds what attempts tell of themselves, or overwrites it."""
        for batch in batches(facts, IN_LIST):
            self._database.write(experiments.put, batch)

    def set_experiment_tag(self, experiment: str, tag: str) -> None:
        """Puts a tag on an experiment, which need not have anything else yet."""
        self._database.write(experiments.set_tag, experiment, tag)

    def remove_experiment_tag(self, experiment: str, tag: str) -> None:
        """Takes a tag off an experiment; one that is not there is no error."""
        self._database.write(experiments.remove_tag, experiment, tag)

    def experiment_facts(
        self, name: str | None = None, *, tags: Sequence[str] = (), conditions: Sequence[Condition] = ()
    ) -> list[ExperimentFacts]:
        """The experiments (or one) that bear all of `tags`, and of which some attempt had a configuration for each
        of the conditions: with their tags and attempts, by name."""
        with self._database.reading() as connection:
            return experiments.find(connection, name, tags, conditions)

    def known_attempts(self) -> dict[tuple[str, str], str | None]:
        """The last word of each attempt of which there are facts, by experiment and id."""
        with self._database.reading() as connection:
            return experiments.known(connection)

    def experiment_tags(self) -> set[tuple[str, str]]:
        """Every (experiment, tag)."""
        with self._database.reading() as connection:
            return experiments.all_tags(connection)

    # -- metric series

    def add_metrics(
        self,
        experiment: str,
        attempt: Attempt,
        points: Iterable[MetricPoint],
        *,
        segment_in: str | None = None,
    ) -> int:
        """Adds points that one attempt logged, in batches; returns how many were given.

        Of two points with the same name and step the later one counts, also across calls. `segment_in`: the folder
        of the store in which they are a segment, to be counted; `listing_word` then says how many it has been told.
        """
        count = 0
        for batch in batches(points, metrics.BATCH):
            self._database.write(metrics.add, experiment, attempt, batch)
            count += len(batch)
        if segment_in is not None:
            self._database.write(metrics.count_segment, segment_in)
        return count

    def metric_names(self, experiment: str, *, logged: bool = False) -> list[str]:
        """Names of all metrics of an experiment, sorted; only of those that have a series, if `logged`."""
        with self._database.reading() as connection:
            return metrics.names(connection, experiment, logged)

    def metric_series(self, experiment: str, name: str, lineage: str | None = None) -> list[MetricPoint]:
        """The series of a lineage by step; where several attempts logged a step, the newest one's point.

        Without `lineage`: of the newest attempt that logged anything.
        """
        with self._database.reading() as connection:
            return metrics.series(connection, experiment, name, lineage)

    def metric_columns(
        self, experiment: str, name: str, lineage: str | None = None
    ) -> list[tuple[int, float, datetime, int]]:
        """The same as (step, value, moment, attempt's number)."""
        with self._database.reading() as connection:
            return metrics.columns(connection, experiment, name, lineage)

    # -- history

    def record_check(
        self,
        checkpoint_id: str | None,
        kind: str,
        outcome: str,
        detail: Mapping[str, Any] | None = None,
        bytes_checked: int = 0,
    ) -> None:
        """Writes down what a verification found. The checkpoint need not be in the catalog."""
        self._database.write(integrity.record, checkpoint_id, kind, outcome, detail or {}, bytes_checked)

    def record_pack_check(
        self, pack: str, outcome: str, bytes_checked: int, replaces: int | None = None
    ) -> int:
        """Writes down that every byte of a pack was read; returns the entry's id. `replaces`: that of its last."""
        return self._database.write(integrity.record_pack, pack, outcome, bytes_checked, replaces)

    def pack_checks(self) -> list[PackCheck]:
        """When each pack was last read, the oldest first."""
        with self._database.reading() as connection:
            return integrity.pack_checks(connection)

    def checks(self, checkpoint_id: str | None = None, limit: int | None = None) -> list[IntegrityCheck]:
        """Verifications of one checkpoint, or all, the newest first."""
        with self._database.reading() as connection:
            return integrity.recorded(connection, checkpoint_id, limit)

    def audit(
        self,
        event: str,
        subject: str,
        outcome: str,
        detail: Mapping[str, Any] | None = None,
        actor: str | None = None,
    ) -> int:
        """Appends to the audit trail; returns the entry's id. `actor` is `user@host:pid` unless given."""
        return self._database.write(audit.append, event, subject, outcome, detail or {}, actor)

    def audit_log(
        self, limit: int | None = None, events: Collection[str] = (), subject: str | None = None
    ) -> list[AuditEntry]:
        """The audit trail, the newest entry first; or only what it has of some `events`, of one `subject`."""
        with self._database.reading() as connection:
            return audit.entries(connection, limit, events, subject)

    def audit_count(self, events: Collection[str] = ()) -> int:
        """How many entries the audit trail has; or how many of some `events`."""
        with self._database.reading() as connection:
            return audit.count(connection, events)

    def verify_audit(self) -> int | None:
        """The first entry that is not as it was written, or is missing; None where all are well."""
        with self._database.reading() as connection:
            return audit.first_broken(connection)

    # -- all of it

    def check(self) -> None:
        """Whether all tables are there and a file of SQLite's, which is read, is sound. Raises CatalogError."""
        migrate.check(self._database)

    def back_up(self, reason: str) -> Path | None:
        """A copy of the database beside it; None where it is no file, or one that can only be read.

        Raises CatalogError (kind `backup`).
        """
        path = self._database.path
        return None if path is None or self._database.read_only else backups.back_up(path, reason)

    @contextmanager
    def rebuild(self) -> Iterator[Rebuild]:
        """Empties the catalog and fills it through the object given, all in one transaction.

        Others see the old contents until it ends, and keep them where it raises. Audit trail and checks
        stay. Writers wait meanwhile: gather what goes in beforehand. The thread inside must not use the
        catalog's own methods.
        """
        with self._database.writing() as connection:
            yield Rebuild(connection)
