"""The history of an experiment as a graph: which checkpoint was trained on from which, drawn in columns.

Retention removes checkpoints in between. What is left is joined by what attempts tell, and drawn as such.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ckpt_core.model import Attempt, Checkpoint

__all__ = ["Link", "Row", "attempts_of", "draw", "links"]


@dataclass(frozen=True, slots=True)
class Link:
    """The checkpoint that another one was trained on from; `direct` where nothing between them is gone."""

    to: str
    direct: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the drawing: its graph, and the checkpoint or the attempt that it tells of, if any."""

    graph: str
    checkpoint: Checkpoint | None = None
    attempt: Attempt | None = None


def attempts_of(checkpoints: Sequence[Checkpoint]) -> list[Attempt]:
    """The attempts that saved them, the oldest first."""
    found = {c.attempt.id: c.attempt for c in sorted(checkpoints, key=lambda c: c.order)}
    return list(found.values())


def links(checkpoints: Sequence[Checkpoint]) -> dict[str, Link | None]:
    """For each checkpoint (of one experiment) the nearest one before it that still stands, in its lineage."""
    ordered = sorted(checkpoints, key=lambda c: c.order)
    standing = {c.id: c for c in ordered}
    found: dict[str, Link | None] = {}
    before: dict[str, Checkpoint] = {}
    for checkpoint in ordered:
        attempt = checkpoint.attempt
        if checkpoint.parent in standing:
            found[checkpoint.id] = Link(checkpoint.parent, True)
        elif attempt.id in before:
            found[checkpoint.id] = Link(before[attempt.id].id, False)
        else:
            origin = _origin(attempt, ordered)
            found[checkpoint.id] = Link(origin.id, False) if origin else None
        before[attempt.id] = checkpoint
    return found


def _origin(attempt: Attempt, ordered: Sequence[Checkpoint]) -> Checkpoint | None:
    """What stands for the checkpoint that an attempt resumed from: itself, or the last before it."""
    if attempt.resumed_from is None:
        return None
    limit = attempt.resumed_step if attempt.resumed_step is not None else 0
    earlier = [
        c
        for c in ordered
        if c.id == attempt.resumed_from
        or (c.attempt.lineage == attempt.lineage and c.attempt.number < attempt.number and c.step <= limit)
    ]
    exact = [c for c in earlier if c.id == attempt.resumed_from]
    return (exact or earlier)[-1] if exact or earlier else None


def draw(checkpoints: Sequence[Checkpoint]) -> Iterator[Row]:
    """The lines of the graph of one experiment, the newest first; under its first checkpoint each attempt."""
    linked = links(checkpoints)
    ordered = sorted(checkpoints, key=lambda c: c.order, reverse=True)
    first = {c.attempt.id: c.id for c in ordered}
    columns: list[Link | None] = []
    for checkpoint in ordered:
        waiting = [i for i, link in enumerate(columns) if link is not None and link.to == checkpoint.id]
        place = waiting[0] if waiting else _free(columns)
        for other in reversed(waiting[1:]):
            yield Row(_joining(columns, place, other))
            columns[other] = None
            _trim(columns, place)
        yield Row(_graph(columns, place), checkpoint=checkpoint)
        columns[place] = linked[checkpoint.id]
        _trim(columns)
        if first[checkpoint.attempt.id] == checkpoint.id:
            yield Row(_graph(columns), attempt=checkpoint.attempt)


def _free(columns: list[Link | None]) -> int:
    for i, link in enumerate(columns):
        if link is None:
            return i
    columns.append(None)
    return len(columns) - 1


def _trim(columns: list[Link | None], least: int = -1) -> None:
    while len(columns) > least + 1 and columns[-1] is None:
        columns.pop()


def _graph(columns: Sequence[Link | None], place: int | None = None) -> str:
    return " ".join("*" if i == place else _bar(link) for i, link in enumerate(columns))


def _bar(link: Link | None) -> str:
    if link is None:
        return " "
    return "|" if link.direct else ":"


def _joining(columns: Sequence[Link | None], place: int, other: int) -> str:
    """A line in which the branch in column `other` runs into the one in column `place`."""
    cells = list(_graph(columns).ljust(2 * other + 1))
    cells[2 * other] = " "
    cells[2 * other - 1] = "/"
    for at in range(2 * place + 1, 2 * other - 1):
        if cells[at] == " ":
            cells[at] = "_"
    return "".join(cells).rstrip()
