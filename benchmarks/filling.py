"""Stores and catalogs with many checkpoints in them, made quickly and without a wish that they last."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.engine import unsynced
from ckpt_core import CheckpointManager
from ckpt_core.catalog import Catalog
from ckpt_core.ids import new_ulid
from ckpt_core.model import Attempt, Checkpoint, MetricPoint
from ckpt_core.repository import Draft
from ckpt_core.tree import borrow, flatten, registry

__all__ = ["METRICS", "attempts_of", "fill_catalog", "fill_store", "points"]

METRICS = ("loss", "val_loss", "accuracy", "lr", "grad_norm", "tokens", "seconds", "perplexity", "bleu", "f1")
_BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
_STATE = 1 << 12


def fill_store(folder: Path, begin: int, end: int, *, experiment: str = "bench") -> None:
    """Puts real checkpoints of steps `begin` to `end` in a store, each with a pack of 4 KiB of its own.

    Committed one after the other as a save does it, but for hooks, retention and audit trail; the catalog
    gets them all at once.
    """
    random = np.random.default_rng(begin)
    with unsynced(), CheckpointManager(folder, experiment=experiment) as manager:
        attempt = manager.begin_attempt(manager.latest())
        repository = manager.workspace.repository

        def entries() -> Iterator[tuple[Checkpoint, list[tuple[str, int]]]]:
            for step in range(begin, end):
                state = {"weight": np.frombuffer(random.bytes(_STATE), np.uint8), "step": step}
                metrics = {"loss": float(random.random())}
                draft = Draft(experiment, step, attempt, metrics, writer={})
                committed = repository.commit(borrow(flatten(state, registry)), draft)
                yield committed.checkpoint(), committed.packs

        manager.workspace.index.catalog().put_checkpoints(entries())


def attempts_of(count: int) -> list[Attempt]:
    """So many attempts, one a lineage."""
    made = []
    for number in range(1, count + 1):
        name = new_ulid()
        made.append(Attempt(number, name, name))
    return made


def fill_catalog(
    catalog: Catalog, experiments: Sequence[str], attempts: Sequence[Attempt], begin: int, end: int
) -> None:
    """Adds the checkpoints `begin` to `end`, spread over experiments and attempts, through the catalog itself.

    A step counts up in its experiment, and each attempt takes a share of the steps, as in training.
    """
    catalog.put_checkpoints(_entries(experiments, attempts, begin, end))


def _entries(
    experiments: Sequence[str], attempts: Sequence[Attempt], begin: int, end: int
) -> Iterator[tuple[Checkpoint, list[tuple[str, int]]]]:
    random = np.random.default_rng(begin)
    values = random.random((end - begin, 2))
    for number in range(begin, end):
        experiment = experiments[number % len(experiments)]
        step = number // len(experiments)
        attempt = attempts[step * len(attempts) // max(1, end // len(experiments) + 1)]
        loss, accuracy = map(float, values[number - begin])
        name = new_ulid()
        yield (
            Checkpoint(
                id=name, experiment=experiment, step=step, created_at=_BEGIN + datetime.timedelta(seconds=number),
                attempt=attempt, parent=None, key=f"checkpoints/{experiment}/{step:012d}-{name}.json",
                digest="A" * 43, logical_bytes=1 << 30, written_bytes=1 << 29, tensor_count=592,
                metrics={"loss": loss, "accuracy": accuracy},
            ),
            [(f"{experiment}/{name}-0-0.safetensors", 1 << 29)],
        )  # fmt: skip


def points(attempt: Attempt, begin: int, end: int) -> Iterator[MetricPoint]:
    """Points `begin` to `end` of one attempt: ten metrics at each step."""
    for number in range(begin, end):
        step, which = divmod(number, len(METRICS))
        at = _BEGIN + datetime.timedelta(milliseconds=number)
        yield MetricPoint(METRICS[which], step, 1.0 / (1 + step), at, attempt.number)
