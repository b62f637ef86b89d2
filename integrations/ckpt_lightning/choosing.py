"""What a fit goes on from: what `fit` was told, or what the callbacks' `resume` says. In the first process only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ckpt_core import Checkpoint, Session
from ckpt_lightning.io import as_reference
from ckpt_lightning.participant import Participant

__all__ = ["Beginning", "choose"]


@dataclass(frozen=True, slots=True)
class Beginning:
    """`name`: a reference or a file, for Lightning to load; None for a start from nothing. `state`: what a reference
    means, loaded already. `sessions`: of each callback, the kind of its resumption and the checkpoint."""

    name: Any
    state: dict[str, Any] | None = field(repr=False)
    sessions: list[tuple[Any, Checkpoint | None]]


def choose(all_of_them: list[Participant], path: Any) -> Beginning:
    """Has every session begin its attempt. `path` is what `fit` was told; without it, of what the callbacks would go on
    from, the furthest is taken.

    Raises UsageError, NotFoundError, CorruptionError.
    """
    reference = as_reference(path) if path else None
    if path and reference is None:  # somebody else's file: nothing here is continued
        for each in all_of_them:
            _session(each).resume(None)
        return _beginning(all_of_them, None, path)
    first = all_of_them[0]
    if reference == "last":  # Lightning's word, which may be said before there is anything
        reference = "latest" if first.manager.latest() is not None else None
    chosen = _take_furthest(all_of_them) if reference is None else _take(first, all_of_them, reference)
    return _beginning(all_of_them, chosen, None)


def _take(chosen: Participant, all_of_them: list[Participant], reference: str) -> Participant:
    step = _session(chosen).resume(reference).step
    for each in all_of_them:
        if each is not chosen:
            _continue(each, each.newest_until(step))
    return chosen


def _take_furthest(all_of_them: list[Participant]) -> Participant | None:
    candidates = [(each, each.candidate()) for each in all_of_them]
    steps = [found[1].step for _, found in candidates if found is not None]
    chosen: Participant | None = None
    for each, found in candidates:
        if chosen is None and found is not None and found[1].step == max(steps):
            chosen = each
            _session(each).resume(found[0])
        else:
            _continue(each, found[1] if found is not None else None)
    return chosen


def _continue(participant: Participant, checkpoint: Checkpoint | None) -> None:
    """The attempt of a callback whose own checkpoint is not what is loaded."""
    if checkpoint is None:
        _session(participant).resume(None)
    else:
        # Of its own state, what its hooks and its save policy had to remember.
        own = participant.manager.load(checkpoint.id, include="session", fallback=False)
        _session(participant).resumed(checkpoint, own)


def _beginning(all_of_them: list[Participant], chosen: Participant | None, name: Any) -> Beginning:
    begun = [_session(each).resumption for each in all_of_them]
    sessions: list[tuple[Any, Checkpoint | None]] = [(each.kind, each.checkpoint) for each in begun]
    if chosen is None:
        return Beginning(name, None, sessions)
    resumption = _session(chosen).resumption
    checkpoint = resumption.checkpoint
    assert checkpoint is not None
    return Beginning(f"{checkpoint.experiment}@{checkpoint.id}", resumption.state, sessions)


def _session(participant: Participant) -> Session:
    assert isinstance(participant.session, Session)
    return participant.session
