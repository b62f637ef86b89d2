"""What a reference means: `[experiment@]latest|best|step=N|tag|id prefix`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Literal, Protocol, TypeVar

from ckpt_core.errors import CkptError, CorruptionError, NotFoundError, UsageError
from ckpt_core.model import Attempt, Checkpoint
from ckpt_core.pipeline.answers import Answers
from ckpt_core.repository.layout import ManifestKey

__all__ = [
    "Mode",
    "best_first",
    "candidates",
    "choose_forgotten",
    "gone_through",
    "newest_lineage",
    "split_reference",
]

Mode = Literal["min", "max"]
T = TypeVar("T")
K = TypeVar("K")


class Asked(Protocol):
    """Whom `candidates` asks: the index, or one of a part of it."""

    def synchronise(self, experiment: str | None = None) -> None: ...
    def ask(self, question: Callable[[Answers], T], experiment: str | None = None) -> T: ...
    def damaged(self, experiment: str | None = None) -> list[tuple[ManifestKey, CkptError]]: ...
    def refuse_if_gone(self) -> None: ...


_SHORTEST_PREFIX = 4
_SHOWN = 8
_MANY = 100


def split_reference(text: str, experiment: str | None = None) -> tuple[str | None, str]:
    """The experiment and the rest of a reference; `experiment` where the reference names none."""
    if not isinstance(text, str) or not text.strip():
        raise UsageError(
            f"{text!r} is not a reference: try latest, best, step=100, a tag or an id", kind="reference"
        )
    named, separator, rest = text.rpartition("@")
    if not separator:
        return experiment, text
    if not named or not rest:
        raise UsageError(f"{text!r} should read EXPERIMENT@REFERENCE, as digits@best", kind="reference")
    return named, rest


def candidates(
    index: Asked, text: str, *, experiment: str | None, metric: str | None = None, mode: Mode = "min"
) -> Iterator[Checkpoint]:
    """The checkpoint that a reference means, followed by those to fall back to (for `latest` and `best`).

    The first is known when this returns; the others are asked for one after the other, and only of the lineage
    that the reference means: another one is another training. Raises NotFoundError, which says what there is
    instead; CorruptionError where there were checkpoints and all their manifests are damaged; UsageError for
    an ambiguous or malformed reference.
    """
    experiment, reference = split_reference(text, experiment)
    index.synchronise(experiment)
    if experiment is None:
        names = index.ask(lambda answers: answers.experiment_names())
    else:
        names = [experiment] if _newest(index, experiment) else []
    if not names:
        raise _nothing(index, experiment, text)
    if reference in ("latest", "best"):
        if len(names) > 1:
            raise UsageError(
                f"{reference!r} of which experiment? there are {', '.join(names[:_SHOWN])}: "
                f"write {names[0]}@{reference}",
                kind="reference",
            )
        newest = _newest(index, names[0])
        if newest is None:
            raise _nothing(index, names[0], text)
        ranked = _newest_first(index, newest) if reference == "latest" else _best(index, newest, metric, mode)
        return chain([next(ranked)], ranked)
    for choose in (_with_step, _tagged, _prefixed):
        choice = choose(index, names, reference)
        if choice is not None:
            return iter([choice])
    latest = max((c for name in names if (c := _newest(index, name))), key=lambda c: c.order)
    raise NotFoundError(
        f"no checkpoint answers to {text!r}; `ckpt ls` lists what there is (latest is step {latest.step})",
        reference=text,
    )


def _newest(index: Asked, experiment: str) -> Checkpoint | None:
    return index.ask(lambda answers: answers.newest(experiment), experiment)


def _newest_first(index: Asked, newest: Checkpoint) -> Iterator[Checkpoint]:
    lineage = newest.attempt.lineage
    yield newest
    yield from _more_and_more(
        index,
        newest,
        lambda answers, limit: answers.checkpoints(
            newest.experiment, lineage=lineage, newest_first=True, limit=limit
        ),
    )


def _best(index: Asked, newest: Checkpoint, metric: str | None, mode: Mode) -> Iterator[Checkpoint]:
    experiment, lineage = newest.experiment, newest.attempt.lineage
    name = _named(metric)
    first = index.ask(lambda answers: answers.best(experiment, name, mode, lineage), experiment)
    if not first:
        every = index.ask(lambda answers: answers.checkpoints(experiment, lineage=lineage), experiment)
        first = best_first(every, name, mode)[:1]
    yield first[0]
    yield from _more_and_more(
        index, first[0], lambda answers, limit: answers.best(experiment, name, mode, lineage, limit)
    )


def _more_and_more(
    index: Asked, first: Checkpoint, question: Callable[[Answers, int], list[Checkpoint]]
) -> Iterator[Checkpoint]:
    """All that a question gives but the first, asked for in ever longer lists: the second is seldom wanted."""
    given = {first.id}
    limit, found = 8, [first]
    while found:
        found = index.ask(partial(_asked, question, limit), first.experiment)
        for checkpoint in found:
            if checkpoint.id not in given:
                given.add(checkpoint.id)
                yield checkpoint
        if len(found) < limit:
            return
        limit *= 8


def choose_forgotten(found: Sequence[Checkpoint], ref: str) -> Checkpoint:
    """The forgotten checkpoint that is meant: the newest of `step=N`, or the one whose id begins so.

    Raises NotFoundError, UsageError.
    """
    step = _step_of(ref)
    if step is not None:
        matching = [c for c in found if c.step == step][-1:]
    elif len(ref) < _SHORTEST_PREFIX:
        raise UsageError(
            f"{ref!r} names no forgotten checkpoint: say step=N or the first {_SHORTEST_PREFIX} characters of its id",
            kind="reference",
        )
    else:
        matching = [c for c in found if c.id.startswith(ref.upper())]
    if len(matching) > 1:
        raise UsageError(
            f"{ref!r} could be {' or '.join(c.id for c in matching[:5])}: give more characters",
            kind="ambiguous",
        )
    if not matching:
        there = ", ".join(f"step={c.step} ({c.id})" for c in found[-5:])
        raise NotFoundError(
            f"no forgotten checkpoint is {ref!r}; " + (f"there are {there}" if there else "there are none"),
            reference=ref,
        )
    return matching[0]


def newest_lineage(found: list[Checkpoint]) -> list[Checkpoint]:
    """The lineage of the newest attempt that saved, from the oldest to the newest."""
    lineage = max(found, key=lambda c: c.order).attempt.lineage
    return sorted((c for c in found if c.attempt.lineage == lineage), key=lambda c: c.order)


def gone_through(
    attempt: Attempt, found: Sequence[Checkpoint], look_up: Callable[[str], Checkpoint | None]
) -> list[Checkpoint]:
    """Those that led to where an attempt is now, the newest first: its own, and what each attempt that it goes on from
    had saved until then, but not after. `look_up` gives one that is not among `found` by its id: a forgotten one."""
    standing = {each.id: each for each in found}
    line: list[Checkpoint] = []
    until: Checkpoint | None = None
    seen: set[str] = set()
    while attempt.id not in seen:
        seen.add(attempt.id)
        own = [c for c in found if c.attempt.id == attempt.id and (until is None or c.order <= until.order)]
        line += sorted(own, key=lambda c: c.order, reverse=True)
        before = attempt.resumed_from
        until = None if before is None else standing.get(before) or look_up(before)
        if until is not None:
            attempt = until.attempt
    return line


def best_first(checkpoints: list[Checkpoint], metric: str | None, mode: Mode) -> list[Checkpoint]:
    """Those that carry the metric, the best first; of equals the older. Raises NotFoundError, UsageError."""
    name = _named(metric)
    carrying = [c for c in checkpoints if not math.isnan(c.metrics.get(name, math.nan))]
    if not carrying:
        known = sorted({each for c in checkpoints for each in c.metrics})
        raise NotFoundError(
            f"no checkpoint carries the metric {name!r}; they carry {', '.join(known) or 'none'}",
            metric=name,
        )
    sign = 1.0 if mode == "min" else -1.0
    return sorted(carrying, key=lambda c: (sign * c.metrics[name], c.order))


def _named(metric: str | None) -> str:
    if metric is None:
        raise UsageError(
            "best by which metric? give the manager metric=..., or the command --metric NAME", kind="metric"
        )
    return metric


def _step_of(reference: str) -> int | None:
    """The step that a reference names; None where it names something else. Raises UsageError."""
    if not reference.startswith("step="):
        return None
    digits = reference.removeprefix("step=")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 20):
        raise UsageError(f"{reference!r} should read step=N with a whole number", kind="reference")
    return min(int(digits), 1 << 62)  # no step is greater


def _with_step(index: Asked, names: Sequence[str], reference: str) -> Checkpoint | None:
    step = _step_of(reference)
    if step is None:
        return None
    matching = _in_each(index, names, lambda answers, name: answers.checkpoints(name, step=step))
    if not matching:
        near = _in_each(index, names, lambda answers, name: [answers.nearest_step(name, step)])
        nearest = min((s for s in near if s is not None), key=lambda s: (abs(s - step), s))
        raise NotFoundError(f"no checkpoint of step {step}; the nearest is step={nearest}", step=step)
    _one_experiment(matching, reference)
    newest = _newest(index, matching[0].experiment) or matching[0]
    return max(matching, key=lambda c: (c.attempt.lineage == newest.attempt.lineage, c.order))


def _tagged(index: Asked, names: Sequence[str], reference: str) -> Checkpoint | None:
    matching = _in_each(index, names, lambda answers, name: answers.checkpoints(name, tag=reference))
    _one_experiment(matching, reference)
    return matching[0] if matching else None


def _prefixed(index: Asked, names: Sequence[str], reference: str) -> Checkpoint | None:
    prefix = reference.upper()
    if len(prefix) < _SHORTEST_PREFIX:
        return None
    only = names[0] if len(names) == 1 else None
    matching = index.ask(lambda answers: answers.find_prefix(prefix, only, _MANY), only)
    if len(matching) > 1:
        count = f"{_MANY} or more" if len(matching) == _MANY else len(matching)
        raise UsageError(
            f"{reference!r} begins {count} ids ({matching[0].id}, {matching[1].id}, ...): write more of it",
            kind="ambiguous",
        )
    return matching[0] if matching else None


def _in_each(index: Asked, names: Sequence[str], question: Callable[[Answers, str], list[T]]) -> list[T]:
    return [found for name in names for found in index.ask(partial(_asked, question, name), name)]


def _asked(question: Callable[[Answers, K], list[T]], about: K, answers: Answers) -> list[T]:
    return question(answers, about)


def _one_experiment(matching: list[Checkpoint], reference: str) -> None:
    names = sorted({c.experiment for c in matching})
    if len(names) > 1:
        raise UsageError(
            f"{reference!r} is in several experiments: write {names[0]}@{reference}", kind="ambiguous"
        )


def _nothing(index: Asked, experiment: str | None, text: str) -> CkptError:
    damaged = index.damaged(experiment)
    if damaged:
        return CorruptionError(
            f"{text!r} means nothing, as the manifest of every checkpoint is damaged: {damaged[-1][1]}",
            kind="document",
            key=damaged[-1][0].key,
            reference=text,
        )
    index.refuse_if_gone()
    if experiment is None:
        return NotFoundError(f"the store has no checkpoints yet, so {text!r} means none", reference=text)
    index.synchronise()
    others = index.ask(lambda answers: answers.experiment_names())
    known = f"; it has {', '.join(others[:_SHOWN])}" if others else ""
    return NotFoundError(
        f"the store has no checkpoints of experiment {experiment!r}{known}",
        kind="experiment" if others else "checkpoint",
        experiment=experiment,
        reference=text,
    )
