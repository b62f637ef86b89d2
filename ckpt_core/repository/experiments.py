"""What a store holds of experiments besides checkpoints and metrics: attempts, how they ended, tags.

Each is a small sealed object. An attempt's beginning and each of its words is written once and never changed:
the last word counts, so the names alone tell what is new.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ckpt_core import clock
from ckpt_core.errors import CkptError, CorruptionError, ObjectNotFoundError, StoreError
from ckpt_core.format.documents import AttemptStart, AttemptWord, ExperimentTag
from ckpt_core.format.names import check_name, encode_name, fault_in_stored
from ckpt_core.format.sealed import seal, unseal
from ckpt_core.model import AttemptFacts, ExperimentFacts
from ckpt_core.repository import layout
from ckpt_core.repository.repository import attempt_from, attempt_to
from ckpt_core.stores import ObjectInfo, Store

__all__ = ["ExperimentRecords", "last_words"]

_LIMIT = 16 << 20
_DEEPEST = 60
_log = logging.getLogger("ckpt_core.repository")


class ExperimentRecords:
    """The attempts and tags of a store's experiments. Every method may be called from any thread.

    `written` is told the key of each object.
    """

    def __init__(self, store: Store, written: Callable[[str], object] | None = None) -> None:
        self._store = store
        self._written = written
        self._damaged: dict[str, ObjectInfo | None] = {}
        """What was left out, by key, and how it looks if a second reading found it damaged too."""

    # -- written ---------------------------------------------------------------------------------

    def begin(self, facts: AttemptFacts) -> None:
        """Writes down that an attempt has begun. Durable when this returns. Raises StoreError."""
        assert facts.started_at is not None and facts.lease is not None
        document = AttemptStart(
            experiment=facts.experiment,
            attempt=attempt_to(facts.attempt),
            started_at=clock.to_text(facts.started_at),
            origin=facts.origin,
            config=None if facts.config is None else dict(facts.config),
            environment=dict(facts.environment),
            process=facts.process,
            lease=facts.lease,
        )
        key = layout.attempt_key(facts.experiment, facts.attempt.number, facts.attempt.id)
        self._put_new(key, seal(document))

    def say(
        self, facts: AttemptFacts, outcome: str, reason: str, performance: Mapping[str, Any] | None = None
    ) -> AttemptFacts:
        """Writes down how an attempt ended, or (`running`) that it goes on. Durable when this returns; the facts
        with it. Raises StoreError."""
        now = clock.now()
        document = AttemptWord(
            experiment=facts.experiment,
            attempt=facts.attempt.id,
            outcome=outcome,
            reason=reason,
            at=clock.to_text(now),
            performance=dict(performance or {}),
        )
        key = layout.attempt_word_key(facts.experiment, facts.attempt.number, facts.attempt.id)
        self._put_new(key, seal(document))
        word = layout.parse_attempt_key(key)
        assert word is not None
        return replace(facts, word=word.word, outcome=outcome, reason=reason, ended_at=now)

    def set_tag(self, experiment: str, tag: str) -> None:
        """Puts a tag on an experiment. Durable when this returns. Raises UsageError, StoreError."""
        check_name(tag, "a tag")
        document = ExperimentTag(experiment=experiment, name=tag, created_at=clock.to_text(clock.now()))
        key = layout.experiment_tag_key(experiment, tag)
        self._store.put(key, seal(document))
        self._tell(key)

    def remove_tag(self, experiment: str, tag: str) -> None:
        """Takes a tag off an experiment; one that is not there is no error."""
        self._store.delete(layout.experiment_tag_key(experiment, tag))

    # -- read ------------------------------------------------------------------------------------

    def keys(self, experiment: str | None = None) -> Iterator[str]:
        """The keys of everything here, by experiment. Reads nothing."""
        prefix = (
            layout.EXPERIMENTS if experiment is None else f"{layout.EXPERIMENTS}/{encode_name(experiment)}"
        )
        for info in self._store.list(prefix):
            yield info.key

    def read(self, key: str) -> AttemptStart | AttemptWord | ExperimentTag:
        """One document. Raises CorruptionError, FormatError, ObjectNotFoundError."""
        place = layout.parse_attempt_key(key)
        found: AttemptStart | AttemptWord | ExperimentTag
        names: tuple[str, ...]
        if place is None:
            found = unseal(self._store.get(key, limit=_LIMIT), ExperimentTag, key)
            expected = layout.experiment_tag_key(found.experiment, found.name)
            names = (found.experiment, found.name)
        elif place.word is None:
            found = unseal(self._store.get(key, limit=_LIMIT), AttemptStart, key)
            expected = layout.attempt_key(found.experiment, found.attempt.number, found.attempt.id)
            names = (found.experiment, *([found.origin] if found.origin is not None else []))
        else:
            found = unseal(self._store.get(key, limit=_LIMIT), AttemptWord, key)
            beginning = layout.attempt_key(found.experiment, place.number, found.attempt)
            expected = f"{beginning.removesuffix('.json')}-{place.word}.json"
            names = (found.experiment,)
        facts = [getattr(found, name, None) for name in ("config", "environment", "performance")]
        if any(_is_deep(each) for each in facts):
            raise CorruptionError(f"{key} is damaged: it is nested too deep", kind="document", key=key)
        if key != expected:
            raise CorruptionError(
                f"{key} is that of another name: it was moved or copied", kind="document", key=key
            )
        for name in names:
            if fault := fault_in_stored(name):
                raise CorruptionError(
                    f"{key} is damaged: its name {name!a} {fault}", kind="document", key=key
                )
        return found

    def attempt(self, start: str | None, word: str | None) -> AttemptFacts | None:
        """An attempt by the key of its beginning and that of its last word (None: none). What cannot be read is
        logged and left out; without a beginning there is nothing to tell."""
        begun = self._readable(start)
        if not isinstance(begun, AttemptStart):
            return None
        facts = AttemptFacts(
            experiment=begun.experiment,
            attempt=attempt_from(begun.attempt),
            started_at=clock.from_text(begun.started_at),
            origin=begun.origin,
            config=begun.config,
            environment=begun.environment,
            process=begun.process,
            lease=begun.lease,
        )
        said = self._readable(word)
        place = layout.parse_attempt_key(word) if word is not None else None
        if not isinstance(said, AttemptWord) or place is None:
            return facts
        return replace(
            facts,
            word=place.word,
            outcome=said.outcome,
            reason=said.reason,
            ended_at=clock.from_text(said.at),
        )

    def performance(self, facts: AttemptFacts) -> dict[str, Any]:
        """The figures that an attempt gave with its last word; empty where there are none."""
        if facts.word is None:
            return {}
        beginning = layout.attempt_key(facts.experiment, facts.attempt.number, facts.attempt.id)
        said = self._readable(f"{beginning.removesuffix('.json')}-{facts.word}.json")
        return said.performance if isinstance(said, AttemptWord) else {}

    def tag(self, key: str) -> tuple[str, str] | None:
        """(experiment, tag) under a key; None where it cannot be read, which is logged."""
        found = self._readable(key)
        return (found.experiment, found.name) if isinstance(found, ExperimentTag) else None

    def all(self, experiment: str | None = None) -> list[ExperimentFacts]:
        """Every experiment (or one) with its tags and attempts, by name. Reads every document."""
        tags: dict[str, set[str]] = {}
        attempts: dict[str, list[AttemptFacts]] = {}
        keys = list(self.keys(experiment))
        for start, word in last_words(keys).values():
            facts = self.attempt(start, word)
            if facts is not None:
                attempts.setdefault(facts.experiment, []).append(facts)
        for key in keys:
            if layout.parse_experiment_tag_key(key) is not None:
                named = self.tag(key)
                if named is not None:
                    tags.setdefault(named[0], set()).add(named[1])
        return [
            ExperimentFacts(
                name,
                tuple(sorted(tags.get(name, ()))),
                tuple(sorted(attempts.get(name, ()), key=lambda facts: facts.order)),
            )
            for name in sorted(tags.keys() | attempts.keys())
        ]

    def _readable(self, key: str | None) -> AttemptStart | AttemptWord | ExperimentTag | None:
        """A document; None where there is none, or it is damaged: that is told once, and it is read again only if it
        has changed."""
        if key is None:
            return None
        try:
            looks = self._store.info(key) if key in self._damaged else None
            if looks is not None and looks == self._damaged[key]:
                return None
            found = self.read(key)
        except ObjectNotFoundError:  # removed since the listing
            return None
        except StoreError:
            raise
        except CkptError as error:
            if key not in self._damaged:
                _log.warning("left out: %s", error)
            self._damaged[key] = looks
            return None
        self._damaged.pop(key, None)
        return found

    def _put_new(self, key: str, data: bytes) -> None:
        self._store.put_new(key, data)
        self._tell(key)

    def _tell(self, key: str) -> None:
        if self._written is not None:
            self._written(key)


def _is_deep(value: Any) -> bool:
    """Whether containers are nested deeper than anything that this engine writes there."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)


def last_words(keys: Iterable[str]) -> dict[tuple[str, str], tuple[str | None, str | None]]:
    """For each (encoded experiment, attempt) the key of its beginning and that of its last word."""
    found: dict[tuple[str, str], tuple[str | None, str | None]] = {}
    for key in sorted(keys):
        place = layout.parse_attempt_key(key)
        if place is not None:
            start, word = found.get((place.folder, place.id), (None, None))
            found[place.folder, place.id] = (key, word) if place.word is None else (start, key)
    return found
