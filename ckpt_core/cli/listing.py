"""Which checkpoints a command is about: those of the experiments that are named, or all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ckpt_core.cli.call import Call
from ckpt_core.errors import NotFoundError
from ckpt_core.model import Checkpoint

if TYPE_CHECKING:
    from ckpt_core.pipeline.answers import Answers

__all__ = ["last_of_each", "listed", "newest_of_each"]


def listed(call: Call, experiments: Sequence[str]) -> list[Checkpoint]:
    """The checkpoints of these experiments, or (none named) of all. Raises NotFoundError."""
    index = call.workspace.index
    if len(experiments) == 1:
        found = index.checkpoints(experiments[0])
    else:
        found = [c for c in index.checkpoints() if not experiments or c.experiment in experiments]
    have = {c.experiment for c in found}
    if not have.issuperset(experiments):
        _refuse_missing(experiments, have | {c.experiment for c in index.checkpoints()})
    return found


def newest_of_each(
    call: Call, experiments: Sequence[str], count: int | None
) -> tuple[list[Checkpoint], dict[str, int]]:
    """The newest `count` checkpoints (None: all) of each of these experiments, or (none named) of all, the newest
    last (of several by time); and how many older ones each has. Raises NotFoundError."""
    index = call.workspace.index
    index.synchronise(experiments[0] if len(experiments) == 1 else None)
    known = index.ask(lambda answers: answers.experiment_names())
    _refuse_missing(experiments, known)
    found: list[Checkpoint] = []
    older: dict[str, int] = {}
    names = sorted(set(experiments)) or known
    for name in names:
        newest = index.ask(partial(_newest, experiment=name, count=count), name)
        found += reversed(newest)
        if count is not None and len(newest) == count:
            older[name] = index.ask(partial(_count, experiment=name), name) - count
    if len(experiments) != 1:
        found.sort(key=lambda c: (c.created_at, c.id))
    return found, {name: number for name, number in older.items() if number}


def _newest(answers: Answers, experiment: str, count: int | None) -> list[Checkpoint]:
    return answers.checkpoints(experiment, newest_first=True, limit=count)


def _count(answers: Answers, experiment: str) -> int:
    return answers.count(experiment)


def _refuse_missing(experiments: Sequence[str], known: Collection[str]) -> None:
    missing = sorted(set(experiments) - set(known))
    if missing:
        raise NotFoundError(
            f"the store has no checkpoints of experiment {missing[0]!r}; "
            f"it has {', '.join(sorted(known)[:8]) or 'none at all'}",
            kind="experiment",
            experiment=missing[0],
        )


def last_of_each(checkpoints: Sequence[Checkpoint], count: int) -> list[Checkpoint]:
    """The newest `count` of each experiment, in the order in which they came."""
    groups: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        groups.setdefault(checkpoint.experiment, []).append(checkpoint)
    kept = {c.id for group in groups.values() for c in sorted(group, key=lambda c: c.order)[-count:]}
    return [c for c in checkpoints if c.id in kept]
