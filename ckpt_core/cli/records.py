"""What the JSON documents say of a checkpoint, and the cells that tables show of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from ckpt_core import clock
from ckpt_core.cli.words import number
from ckpt_core.model import Attempt, Checkpoint

__all__ = ["attempt_record", "checkpoint_record", "marks", "metrics_text", "short_ids"]

_SHORTEST = 10  # of a ULID these tell the millisecond


def checkpoint_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as every document that lists checkpoints tells it."""
    return {
        "id": checkpoint.id,
        "experiment": checkpoint.experiment,
        "step": checkpoint.step,
        "created_at": clock.to_text(checkpoint.created_at),
        "attempt": attempt_record(checkpoint.attempt),
        "parent": checkpoint.parent,
        "metrics": dict(checkpoint.metrics),
        "tags": list(checkpoint.tags),
        "pinned": checkpoint.pinned,
        "logical_bytes": checkpoint.logical_bytes,
        "written_bytes": checkpoint.written_bytes,
        "tensors": checkpoint.tensor_count,
        "key": checkpoint.key,
        "digest": checkpoint.digest,
    }


def attempt_record(attempt: Attempt) -> dict[str, Any]:
    """An attempt as documents tell it."""
    return {
        "number": attempt.number,
        "id": attempt.id,
        "lineage": attempt.lineage,
        "resumed_from": attempt.resumed_from,
        "resumed_step": attempt.resumed_step,
    }


def short_ids(ids: Iterable[str]) -> dict[str, str]:
    """Each id cut to the length, the same for all, at which they still differ."""
    everything = sorted(set(ids))
    length = _SHORTEST
    for one, two in pairwise(everything):
        while one[:length] == two[:length]:
            length += 1
    return {each: each[:length] for each in everything}


def marks(checkpoint: Checkpoint, latest: bool = False, best: bool = False) -> list[str]:
    """What sets a checkpoint apart: latest, best, its tags, pinned."""
    return [
        *(["latest"] if latest else []),
        *(["best"] if best else []),
        *checkpoint.tags,
        *(["pinned"] if checkpoint.pinned else []),
    ]


def metrics_text(checkpoint: Checkpoint, names: Sequence[str] | None = None) -> str:
    """`val_loss=0.31 accuracy=0.9`."""
    chosen = checkpoint.metrics if names is None else [name for name in names if name in checkpoint.metrics]
    return " ".join(f"{name}={number(checkpoint.metrics[name])}" for name in chosen)
