"""Which checkpoints a command is about: those of the experiments that are named, or all."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_core.cli.call import Call
from ckpt_core.errors import NotFoundError
from ckpt_core.model import Checkpoint

__all__ = ["last_of_each", "listed"]


def listed(call: Call, experiments: Sequence[str]) -> list[Checkpoint]:
    """The checkpoints of these experiments, or (none named) of all. Raises NotFoundError."""
    index = call.workspace.index
    if len(experiments) == 1:
        found = index.checkpoints(experiments[0])
    else:
        found = [c for c in index.checkpoints() if not experiments or c.experiment in experiments]
    missing = sorted(set(experiments) - {c.experiment for c in found})
    if missing:
        known = sorted({c.experiment for c in index.checkpoints()})
        raise NotFoundError(
            f"the store has no checkpoints of experiment {missing[0]!r}; "
            f"it has {', '.join(known[:8]) or 'none at all'}",
            kind="experiment",
            experiment=missing[0],
        )
    return found


def last_of_each(checkpoints: Sequence[Checkpoint], count: int) -> list[Checkpoint]:
    """The newest `count` of each experiment, in the order in which they came."""
    groups: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        groups.setdefault(checkpoint.experiment, []).append(checkpoint)
    kept = {c.id for group in groups.values() for c in sorted(group, key=lambda c: c.order)[-count:]}
    return [c for c in checkpoints if c.id in kept]
