"""Words of the domain as frozen data: what crosses the floors. Behaviour stays where the floor is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "Attempt",
    "AttemptFacts",
    "Buffer",
    "Checkpoint",
    "Decision",
    "ExperimentFacts",
    "ExperimentSummary",
    "MetricPoint",
    "Snapshot",
    "StagedTensor",
    "TensorSpec",
]


Buffer = npt.NDArray[np.uint8]
"""One-dimensional bytes in host memory."""


class TensorSpec(NamedTuple):
    """What a tensor is, apart from its values. `dtype` is a name of `docs/format.md`, as `"F32"`."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StagedTensor:
    """One tensor of a snapshot: its place in the state, what it is, and its bytes.

    The bytes are in C order and in the byte order that the name of the dtype says: little endian unless it
    is one of numpy's big-endian type strings, as `">f4"`.
    """

    path: str
    kind: str
    spec: TensorSpec
    data: Buffer


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state at one instant: the tree with plain values inline, and the tensors it names by index."""

    tree: Any
    tensors: tuple[StagedTensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.data.nbytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a training process in an experiment.

    `lineage` is the id of the attempt that started from nothing, through however many resumes:
    attempts of one lineage are one training effort, and nothing of another is mixed into it.
    """

    number: int
    id: str
    lineage: str
    resumed_from: str | None = None
    resumed_step: int | None = None


@dataclass(frozen=True, slots=True)
class AttemptFacts:
    """An attempt with what its own documents tell. Of one that an earlier version made, there are none:
    `started_at` is None.

    `origin` is the experiment of the checkpoint that it went on from. `outcome` is its last word: `finished`,
    `failed`, `preempted`; None (or `running`) where it has not ended, or could not say so.
    """

    experiment: str
    attempt: Attempt
    started_at: datetime | None = None
    origin: str | None = None
    config: Mapping[str, Any] | None = field(default=None, hash=False)
    environment: Mapping[str, Any] = field(default_factory=dict, hash=False)
    process: str = ""
    lease: str | None = None
    word: str | None = None
    """Names its last word among others."""
    outcome: str | None = None
    reason: str = ""
    ended_at: datetime | None = None

    @property
    def order(self) -> tuple[int, str]:
        """Sorts the attempts of an experiment from the oldest to the newest."""
        return (self.attempt.number, self.attempt.id)


@dataclass(frozen=True, slots=True)
class ExperimentFacts:
    """An experiment's tags and attempts, as the catalog and the store know them."""

    name: str
    tags: tuple[str, ...] = ()
    attempts: tuple[AttemptFacts, ...] = ()
    """From the oldest to the newest."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One immutable committed version of a state, as the catalog and the store know it."""

    id: str
    experiment: str
    step: int
    created_at: datetime
    attempt: Attempt
    parent: str | None
    key: str
    digest: str
    logical_bytes: int
    written_bytes: int
    tensor_count: int
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    tags: tuple[str, ...] = ()
    pinned: bool = False

    @property
    def order(self) -> tuple[int, str, int, str]:
        """Sorts checkpoints of an experiment from the oldest to the newest."""
        return (self.attempt.number, self.attempt.id, self.step, self.id)


@dataclass(frozen=True, slots=True)
class Decision:
    """What retention says of one checkpoint, and why. `reasons` is never empty."""

    checkpoint: Checkpoint
    keep: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of one metric series."""

    name: str
    step: int
    value: float
    at: datetime
    attempt: int


@dataclass(frozen=True, slots=True)
class ExperimentSummary:
    """An experiment in one row: how many checkpoints it has, and what they weigh."""

    name: str
    checkpoints: int
    attempts: int
    first_at: datetime | None
    last_at: datetime | None
    last_step: int | None
    logical_bytes: int
    written_bytes: int
