"""Experiments and attempts as their users see them: frozen, with the status worked out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, final

from ckpt_core.configuration import values_of
from ckpt_core.model import AttemptFacts, ExperimentFacts
from ckpt_core.tracker.tables import Tabular, html_table

__all__ = [
    "STATUSES",
    "AttemptView",
    "Experiment",
    "Experiments",
    "Parent",
    "configuration_of",
    "experiment_of",
]

Status = Literal["running", "finished", "failed", "preempted", "lost", "unknown"]
STATUSES: tuple[Status, ...] = ("running", "finished", "failed", "preempted", "lost", "unknown")


@dataclass(frozen=True, slots=True)
class Parent:
    """The checkpoint that an attempt went on from: one of its own experiment (`resumed`), or of another
    (`fine-tuned`). `experiment` is None where an earlier version did not write it down."""

    relation: Literal["resumed", "fine-tuned"]
    experiment: str | None
    checkpoint: str
    step: int | None


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One start of a training process. Of one by an earlier version only what its checkpoints tell is known, and
    its status is `unknown`."""

    number: int
    id: str
    lineage: str
    status: Status
    reason: str
    started_at: datetime | None
    ended_at: datetime | None
    parent: Parent | None
    config: Mapping[str, Any] | None = field(hash=False)
    environment: Mapping[str, Any] = field(hash=False, repr=False)


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment: status, configuration and environment are those of its newest attempt (the configuration of
    the newest that recorded one). `parent` is what the training effort began from, if not from nothing."""

    name: str
    tags: tuple[str, ...]
    attempts: tuple[AttemptView, ...] = field(hash=False)
    """From the oldest to the newest."""

    @property
    def newest(self) -> AttemptView | None:
        """The newest attempt; None of an experiment that has tags alone."""
        return self.attempts[-1] if self.attempts else None

    @property
    def status(self) -> Status:
        """`running`, `finished`, `failed`, `preempted`, `lost` (its process is gone without a word, or has not been
        heard of for half an hour), or `unknown`."""
        return self.newest.status if self.newest is not None else "unknown"

    @property
    def reason(self) -> str:
        """Why it failed, or which signal came."""
        return self.newest.reason if self.newest is not None else ""

    @property
    def config(self) -> Mapping[str, Any]:
        """What it was configured with; empty where nobody said."""
        return next((each.config for each in reversed(self.attempts) if each.config is not None), {})

    @property
    def environment(self) -> Mapping[str, Any]:
        """Where it ran: commit, packages, hardware, host, job."""
        return self.newest.environment if self.newest is not None else {}

    @property
    def parent(self) -> Parent | None:
        """The checkpoint of another experiment that the training effort began from."""
        if self.newest is None:
            return None
        first = next(each for each in self.attempts if each.lineage == self.newest.lineage)
        return first.parent if first.parent is not None and first.parent.relation == "fine-tuned" else None

    @property
    def started_at(self) -> datetime | None:
        """When its first attempt began."""
        return next((each.started_at for each in self.attempts if each.started_at is not None), None)

    @property
    def ended_at(self) -> datetime | None:
        """When its newest attempt ended; None while it has not, or could not say so."""
        return self.newest.ended_at if self.newest is not None else None

    def _repr_html_(self) -> str:
        facts = {
            "status": f"{self.status}: {self.reason}" if self.reason else self.status,
            "tags": self.tags,
            "started": self.started_at,
            "ended": self.ended_at,
            "config": self.config,
            "environment": {k: v for k, v in self.environment.items() if k != "packages"},
        }
        if self.parent is not None:
            facts["began from"] = f"{self.parent.experiment or '?'} step {self.parent.step}"
        attempts = [
            (each.number, each.status, each.started_at, each.ended_at, each.reason) for each in self.attempts
        ]
        return html_table(self.name, ("", ""), facts.items()) + html_table(
            "attempts", ("attempt", "status", "started", "ended", ""), attempts
        )


@final
class Experiments(Tabular, Sequence[Experiment]):
    """Experiments in the order of their names, as a sequence and as a table with a row each."""

    def __init__(self, found: Sequence[Experiment]) -> None:
        self._found = tuple(found)

    def __getitem__(self, place: Any) -> Any:
        found = self._found[place]
        return Experiments(found) if isinstance(place, slice) else found

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Experiment]:
        return iter(self._found)

    def columns(self) -> dict[str, Sequence[Any]]:
        return {
            "experiment": [each.name for each in self],
            "status": [each.status for each in self],
            "tags": [list(each.tags) for each in self],
            "attempts": [len(each.attempts) for each in self],
            "started_at": [each.started_at for each in self],
            "ended_at": [each.ended_at for each in self],
            "git_commit": [each.environment.get("git_commit") for each in self],
            "host": [each.environment.get("host") for each in self],
            **self._values(),
        }

    def title(self) -> str:
        return "experiments"

    def __repr__(self) -> str:
        return f"<Experiments {', '.join(each.name for each in self)}>"

    def _values(self) -> dict[str, Sequence[Any]]:
        """The values of all configurations, a column each: `config.optimizer.lr`."""
        rows = [configuration_of(each) for each in self]
        paths = sorted({path for row in rows for path in row})
        return {f"config.{path}": [row.get(path) for row in rows] for path in paths}


def configuration_of(experiment: Experiment) -> dict[str, Any]:
    """The values of its configuration by their paths."""
    return {path: value.plain for path, value in values_of(experiment.config)}


def experiment_of(facts: ExperimentFacts, is_alive: Callable[[AttemptFacts], bool]) -> Experiment:
    """An experiment with the status of each attempt."""
    return Experiment(facts.name, facts.tags, tuple(_view(each, is_alive) for each in facts.attempts))


def _view(facts: AttemptFacts, is_alive: Callable[[AttemptFacts], bool]) -> AttemptView:
    ended = facts.outcome not in (None, "running")
    return AttemptView(
        number=facts.attempt.number,
        id=facts.attempt.id,
        lineage=facts.attempt.lineage,
        status=_status(facts, is_alive),
        reason=facts.reason,
        started_at=facts.started_at,
        ended_at=facts.ended_at if ended else None,
        parent=_parent(facts),
        config=facts.config,
        environment=facts.environment,
    )


def _status(facts: AttemptFacts, is_alive: Callable[[AttemptFacts], bool]) -> Status:
    if facts.started_at is None:
        return "unknown"
    if facts.outcome in (None, "running"):
        return "running" if is_alive(facts) else "lost"
    return next((known for known in STATUSES if known == facts.outcome), "unknown")


def _parent(facts: AttemptFacts) -> Parent | None:
    attempt = facts.attempt
    if attempt.resumed_from is None:
        return None
    own = attempt.lineage != attempt.id or facts.origin == facts.experiment
    experiment = facts.experiment if own else facts.origin
    return Parent("resumed" if own else "fine-tuned", experiment, attempt.resumed_from, attempt.resumed_step)
