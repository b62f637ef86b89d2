"""Experiments beyond their checkpoints: what attempts tell of themselves, configurations, tags."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, delete, insert, select

from ckpt_core.catalog.dialect import insert_new, upsert
from ckpt_core.catalog.identities import IN_LIST, attempt_ids, batches, experiment_ids, experiment_of
from ckpt_core.catalog.schema import attempt_facts, attempts, config_values, experiment_tags, experiments
from ckpt_core.catalog.scope import STORE
from ckpt_core.catalog.types import check_name, check_uid, tidy
from ckpt_core.configuration import Condition, values_of
from ckpt_core.model import Attempt, AttemptFacts, ExperimentFacts

__all__ = ["all_tags", "find", "known", "put", "remove_tag", "set_tag"]


def put(connection: Connection, facts: Iterable[AttemptFacts]) -> None:
    """Inserts or overwrites what attempts tell of themselves. Those without a beginning are passed over."""
    given = {(each.experiment, each.attempt.id): each for each in facts if each.started_at is not None}
    if not given:
        return
    numbers = experiment_ids(connection, {each.experiment for each in given.values()})
    found = attempt_ids(connection, [(numbers[each.experiment], each.attempt) for each in given.values()])
    rows, values = [], []
    for each in given.values():
        number = found[numbers[each.experiment], each.attempt.id]
        rows.append(_row(number, each))
        values += [
            {
                "attempt_id": number,
                "path": path,
                "kind": value.kind,
                "number": value.number,
                "text": value.text,
            }
            for path, value in values_of(tidy(each.config or {}))
        ]
    upsert(connection, attempt_facts, ("attempt_id",), rows)
    for batch in batches((row["attempt_id"] for row in rows), IN_LIST):
        connection.execute(delete(config_values).where(config_values.c.attempt_id.in_(batch)))
    if values:
        connection.execute(insert(config_values), values)


def _row(number: int, facts: AttemptFacts) -> dict[str, Any]:
    return {
        "attempt_id": number,
        "started_at": facts.started_at,
        "origin": None if facts.origin is None else check_name(facts.origin, "the origin"),
        "process": facts.process,
        "lease_uid": None if facts.lease is None else check_uid(facts.lease, "the lease"),
        "word_uid": None if facts.word is None else check_uid(facts.word, "the last word"),
        "outcome": facts.outcome,
        "reason": tidy(facts.reason),
        "ended_at": facts.ended_at,
        "config": None if facts.config is None else tidy(facts.config),
        "environment": tidy(facts.environment),
    }


def set_tag(connection: Connection, experiment: str, tag: str) -> None:
    """Puts a tag on an experiment, which is made where it is new."""
    number = experiment_ids(connection, [experiment])[experiment]
    insert_new(connection, experiment_tags, [{"experiment_id": number, "name": check_name(tag, "the tag")}])


def remove_tag(connection: Connection, experiment: str, tag: str) -> None:
    """Takes a tag off an experiment."""
    mine = experiment_tags.c.experiment_id == experiment_of(experiment)
    connection.execute(delete(experiment_tags).where(mine, experiment_tags.c.name == tag))


def all_tags(connection: Connection) -> set[tuple[str, str]]:
    """Every (experiment, tag)."""
    query = (
        select(experiments.c.name, experiment_tags.c.name)
        .join(experiment_tags, experiment_tags.c.experiment_id == experiments.c.id)
        .where(experiments.c.store_id == STORE)
    )
    return {(experiment, tag) for experiment, tag in connection.execute(query)}


def known(connection: Connection) -> dict[tuple[str, str], str | None]:
    """The last word of each attempt of which there are facts, by experiment and id."""
    query = (
        select(experiments.c.name, attempts.c.uid, attempt_facts.c.word_uid)
        .join(attempts, attempts.c.experiment_id == experiments.c.id)
        .join(attempt_facts, attempt_facts.c.attempt_id == attempts.c.id)
        .where(experiments.c.store_id == STORE)
    )
    return {(experiment, uid): word for experiment, uid, word in connection.execute(query)}


def find(
    connection: Connection, name: str | None, wanted: Sequence[str], conditions: Sequence[Condition]
) -> list[ExperimentFacts]:
    """Experiments that bear all the tags and had, in some attempt, a value for each condition; by name."""
    query = select(experiments.c.id, experiments.c.name).order_by(experiments.c.name)
    query = query.where(experiments.c.store_id == STORE)
    if name is not None:
        query = query.where(experiments.c.name == name)
    for tag in wanted:
        bearing = select(experiment_tags.c.experiment_id).where(experiment_tags.c.name == tag)
        query = query.where(experiments.c.id.in_(bearing))
    for condition in conditions:
        query = query.where(experiments.c.id.in_(_having(condition)))
    numbers: dict[int, str] = {row.id: row.name for row in connection.execute(query)}
    named: dict[int, list[str]] = {}
    tried: dict[int, list[AttemptFacts]] = {}
    for batch in batches(numbers, IN_LIST):
        tags = select(experiment_tags).where(experiment_tags.c.experiment_id.in_(batch))
        for number, tag in connection.execute(tags.order_by(experiment_tags.c.name)):
            named.setdefault(number, []).append(tag)
        facts = (
            select(attempts, *(column for column in attempt_facts.c if column.name != "attempt_id"))
            .outerjoin(attempt_facts, attempt_facts.c.attempt_id == attempts.c.id)
            .where(attempts.c.experiment_id.in_(batch))
            .order_by(attempts.c.experiment_id, attempts.c.number, attempts.c.uid)
        )
        for row in connection.execute(facts):
            tried.setdefault(row.experiment_id, []).append(_facts(row, numbers[row.experiment_id]))
    return [
        ExperimentFacts(found, tuple(named.get(number, ())), tuple(tried.get(number, ())))
        for number, found in numbers.items()
    ]


def _having(condition: Condition) -> Select[Any]:
    """The experiments of which some attempt fulfils a condition."""
    row, value = config_values.c, condition.value
    alike: ColumnElement[bool] = row.kind == value.kind
    column: ColumnElement[Any] = row.text if value.kind == "text" else row.number
    if value.kind != "none":
        compared: dict[str, ColumnElement[bool]] = {
            "=": column == value.comparable,
            "!=": column != value.comparable,
            "<": column < value.comparable,
            "<=": column <= value.comparable,
            ">": column > value.comparable,
            ">=": column >= value.comparable,
        }
        alike &= compared[condition.operation]
    elif condition.operation in ("!=", "<", ">"):
        alike &= row.kind != row.kind
    if condition.operation == "!=":
        alike |= row.kind != value.kind
    return (
        select(attempts.c.experiment_id)
        .join(config_values, row.attempt_id == attempts.c.id)
        .where(row.path == condition.path, alike)
    )


def _facts(row: Row[Any], experiment: str) -> AttemptFacts:
    attempt = Attempt(row.number, row.uid, row.lineage_uid, row.resumed_from, row.resumed_step)
    if row.started_at is None:
        return AttemptFacts(experiment, attempt)
    return AttemptFacts(
        experiment=experiment,
        attempt=attempt,
        started_at=row.started_at,
        origin=row.origin,
        config=row.config,
        environment=row.environment,
        process=row.process,
        lease=row.lease_uid,
        word=row.word_uid,
        outcome=row.outcome,
        reason=row.reason,
        ended_at=row.ended_at,
    )
