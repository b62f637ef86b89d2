"""The documents that the API answers with, as OpenAPI tells them. A number that JSON lacks is a text: `NaN`,
`Infinity`, `-Infinity`."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Path as InPath
from pydantic import BaseModel, Field

from ckpt_core import clock
from ckpt_core.model import Checkpoint, ExperimentSummary
from ckpt_core.tracker.comparison import Row
from ckpt_core.tracker.views import AttemptView, Experiment, Parent, Status

__all__ = [
    "AttemptDocument", "CheckpointDocument", "CheckpointPage", "ComparisonPage", "DecisionDocument", "DiffDocument",
    "ExperimentDetail", "ExperimentDocument", "ExperimentName", "ExperimentPage", "Id", "LeafDocument", "LeafPage",
    "MetricNames", "ParentDocument", "PerformancePage", "PointDocument", "PointPage", "RetentionDocument", "StoreInfo",
    "TagName", "VerifyDocument", "checkpoint_document", "experiment_detail", "experiment_document", "number",
    "performance_document", "plain_json", "row_document",
]  # fmt: skip

Id = Annotated[
    str, InPath(pattern="^[0-7][0-9A-HJKMNP-TV-Z]{25}$", description="The id of a checkpoint, all of it.")
]
ExperimentName = Annotated[str, InPath(max_length=255)]
Number = float | str


class StoreInfo(BaseModel):
    version: str
    format: int
    digest: str
    chunk_bytes: int
    allow_write: bool
    parts: list[str] = Field(description="The installed parts of the API that others added.")


class ExperimentDocument(BaseModel):
    name: str
    status: Status
    tags: list[str]
    checkpoints: int
    attempts: int
    first_at: str | None
    last_at: str | None
    last_step: int | None
    logical_bytes: int
    written_bytes: int


class ExperimentPage(BaseModel):
    items: list[ExperimentDocument]
    next: str | None


class ParentDocument(BaseModel):
    relation: Literal["resumed", "fine-tuned"]
    experiment: str | None
    checkpoint: str
    step: int | None


class AttemptDocument(BaseModel):
    number: int
    id: str
    lineage: str
    status: Status
    reason: str
    started_at: str | None
    ended_at: str | None
    parent: ParentDocument | None
    config: dict[str, Any] | None = Field(description="null where the attempt recorded none.")
    environment: dict[str, Any]


class ExperimentDetail(BaseModel):
    name: str
    status: Status
    reason: str
    tags: list[str]
    started_at: str | None
    ended_at: str | None
    parent: ParentDocument | None = Field(
        description="The checkpoint of another experiment that it began from."
    )
    config: dict[str, Any]
    environment: dict[str, Any]
    attempts: list[AttemptDocument] = Field(description="From the oldest to the newest.")


class RowDocument(BaseModel):
    group: Literal["status", "config", "environment", "metric"]
    name: str
    same: bool
    values: list[Any]


class ComparisonPage(BaseModel):
    experiments: list[str]
    items: list[RowDocument]
    next: str | None


class LatencyDocument(BaseModel):
    count: int
    p50: float
    p99: float


class RegionDocument(BaseModel):
    hits: int
    misses: int
    rate: float | None


class CacheDocument(BaseModel):
    regions: dict[str, RegionDocument]
    entries: int
    bytes: int


class PerformanceDocument(BaseModel):
    experiment: str
    attempt: int
    id: str
    status: Status
    latencies: dict[str, LatencyDocument]
    bytes: dict[str, int]
    cache: CacheDocument
    queues: dict[str, int]


class PerformancePage(BaseModel):
    items: list[PerformanceDocument]
    next: str | None


class CheckpointDocument(BaseModel):
    id: str
    experiment: str
    step: int
    created_at: str
    attempt: int
    lineage: str
    parent: str | None
    metrics: dict[str, Number]
    tags: list[str]
    pinned: bool
    logical_bytes: int
    written_bytes: int
    tensors: int
    digest: str


class CheckpointPage(BaseModel):
    items: list[CheckpointDocument]
    next: str | None


class LeafDocument(BaseModel):
    path: str
    dtype: str | None = Field(description="Of a tensor; null for a plain value.")
    shape: list[int] | None
    bytes: int | None
    value: Any = None


class LeafPage(BaseModel):
    items: list[LeafDocument]
    next: str | None


class MetricNames(BaseModel):
    items: list[str]


class PointDocument(BaseModel):
    step: int
    value: Number
    at: str
    attempt: int


class PointPage(BaseModel):
    items: list[PointDocument]
    next: str | None


class DecisionDocument(BaseModel):
    checkpoint: CheckpointDocument
    keep: bool
    reasons: list[str]


class RetentionDocument(BaseModel):
    items: list[DecisionDocument]


class DiffDocument(BaseModel):
    old: CheckpointDocument
    new: CheckpointDocument
    same: bool
    same_tensors: int
    same_values: int
    tensors: list[dict[str, Any]]
    values: list[dict[str, Any]]
    metrics: list[dict[str, Any]]


class VerifyDocument(BaseModel):
    ok: bool
    packs: int
    bytes_read: int
    problems: list[dict[str, Any]]


class TagName(BaseModel):
    model_config = {"extra": "forbid"}

    tag: str = Field(min_length=1, max_length=255)


def number(value: float) -> Number:
    """A number as JSON can tell it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def plain_json(value: Any) -> Any:
    """A plain value of a state as JSON; what it has no form for, as a text."""
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict):
        return {str(key): plain_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_json(each) for each in value]
    return str(value)


def checkpoint_document(checkpoint: Checkpoint) -> CheckpointDocument:
    """A checkpoint as every answer tells it."""
    return CheckpointDocument(
        id=checkpoint.id,
        experiment=checkpoint.experiment,
        step=checkpoint.step,
        created_at=clock.to_text(checkpoint.created_at),
        attempt=checkpoint.attempt.number,
        lineage=checkpoint.attempt.lineage,
        parent=checkpoint.parent,
        metrics={name: number(value) for name, value in checkpoint.metrics.items()},
        tags=list(checkpoint.tags),
        pinned=checkpoint.pinned,
        logical_bytes=checkpoint.logical_bytes,
        written_bytes=checkpoint.written_bytes,
        tensors=checkpoint.tensor_count,
        digest=checkpoint.digest,
    )


def experiment_document(found: Experiment, summary: ExperimentSummary | None) -> ExperimentDocument:
    """An experiment in one row, with what its checkpoints come to."""
    return ExperimentDocument(
        name=found.name,
        status=found.status,
        tags=list(found.tags),
        checkpoints=summary.checkpoints if summary else 0,
        attempts=len(found.attempts),
        first_at=_moment(summary.first_at if summary else None),
        last_at=_moment(summary.last_at if summary else None),
        last_step=summary.last_step if summary else None,
        logical_bytes=summary.logical_bytes if summary else 0,
        written_bytes=summary.written_bytes if summary else 0,
    )


def experiment_detail(found: Experiment) -> ExperimentDetail:
    """All that is known of an experiment besides its checkpoints and metrics."""
    return ExperimentDetail(
        name=found.name,
        status=found.status,
        reason=found.reason,
        tags=list(found.tags),
        started_at=_moment(found.started_at),
        ended_at=_moment(found.ended_at),
        parent=_parent(found.parent),
        config=plain_json(dict(found.config)),
        environment=plain_json(dict(found.environment)),
        attempts=[
            AttemptDocument(
                number=each.number,
                id=each.id,
                lineage=each.lineage,
                status=each.status,
                reason=each.reason,
                started_at=_moment(each.started_at),
                ended_at=_moment(each.ended_at),
                parent=_parent(each.parent),
                config=None if each.config is None else plain_json(dict(each.config)),
                environment=plain_json(dict(each.environment)),
            )
            for each in found.attempts
        ],
    )


def row_document(row: Row) -> RowDocument:
    """One fact of experiments that are compared."""
    values = [plain_json(value) for value in row.values]
    return RowDocument.model_validate(
        {"group": row.group, "name": plain_json(row.name), "same": row.same, "values": values}
    )


def performance_document(name: str, view: AttemptView, figures: dict[str, Any]) -> PerformanceDocument:
    """The figures of an attempt, in the shape that `are_figures` holds them to."""
    own = {"experiment": name, "attempt": view.number, "id": view.id, "status": view.status}
    return PerformanceDocument.model_validate({**figures, **own})


def _parent(parent: Parent | None) -> ParentDocument | None:
    return None if parent is None else ParentDocument(**asdict(parent))


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else clock.to_text(moment)
