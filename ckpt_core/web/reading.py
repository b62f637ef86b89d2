"""What the API tells: experiments, metrics, checkpoints, what is in them, what differs, what retention would do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from ckpt_core import clock
from ckpt_core.config import version_of
from ckpt_core.errors import NotFoundError, UsageError
from ckpt_core.format.sealed import seal
from ckpt_core.maintenance.difference import ABSENT, TensorChange, ValueChange, difference
from ckpt_core.maintenance.leaves import plain_leaves, tensor_specs
from ckpt_core.model import Checkpoint
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.policies import RetentionContext, asked_policies, decide_lineages
from ckpt_core.tracker.comparison import GROUPS, Row
from ckpt_core.tracker.experiments import ExperimentTracker
from ckpt_core.tracker.views import Status
from ckpt_core.tree import dtypes
from ckpt_core.web import documents as say
from ckpt_core.web.base import BaseAPI
from ckpt_core.web.choosing import Choosing
from ckpt_core.web.paging import Cursor, Limit, page

__all__ = ["ReadingAPI"]

Name = Annotated[str, Query(min_length=1, max_length=255)]
OneName = Annotated[str, Field(min_length=1, max_length=255)]
OptionalName = Annotated[str | None, Query(min_length=1, max_length=255)]
Mode = Literal["min", "max"]
Count = Annotated[int | None, Query(ge=1, le=1_000_000)]


class ReadingAPI(BaseAPI):
    """The routes that change nothing."""

    def __init__(
        self, workspace: Workspace, *, allow_write: bool = False, parts: list[str] | None = None
    ) -> None:
        super().__init__(workspace)
        self._choosing = Choosing(workspace)
        self._tracker = ExperimentTracker(workspace)
        self._allow_write = allow_write
        self._parts = parts or []

    def router(self) -> APIRouter:
        router = APIRouter()
        for path, endpoint in (
            ("/store", self.store),
            ("/experiments", self.experiments),
            ("/experiments/{name}", self.experiment),
            ("/comparison", self.comparison),
            ("/performance", self.performance),
            ("/metrics", self.metrics),
            ("/series", self.series),
            ("/checkpoints", self.checkpoints),
            ("/checkpoint", self.checkpoint),
            ("/checkpoints/{id}", self.one),
            ("/checkpoints/{id}/manifest", self.manifest),
            ("/checkpoints/{id}/leaves", self.leaves),
            ("/checkpoints/{id}/diff", self.diff),
            ("/retention", self.retention),
        ):
            router.add_api_route(path, endpoint, methods=["GET"], operation_id=endpoint.__name__)
        return router

    def store(self) -> say.StoreInfo:
        """The store, and what this server allows."""
        document = self.workspace.repository.document
        return say.StoreInfo(
            version=version_of("ckpt-core") or "unknown",
            format=document.format,
            digest=document.digest,
            chunk_bytes=document.chunk_bytes,
            allow_write=self._allow_write,
            parts=self._parts,
        )

    def experiments(
        self,
        tag: Annotated[list[OneName] | None, Query(max_length=100)] = None,
        status: Status | None = None,
        config: Annotated[list[OneName] | None, Query(max_length=100)] = None,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> say.ExperimentPage:
        """Every experiment, by name; or those that bear all these tags, whose newest attempt has this status, and that
        are configured so (`config=optimizer.lr>=0.01`; also with `=`, `!=`, `<`, `<=`, `>`)."""
        found = self._tracker.experiments(tags=tag or (), status=status, config=config or ())
        holds = {summary.name: summary for summary in self.workspace.facts.summaries()}
        items, following = page(found, lambda each: [each.name], cursor, limit)
        return say.ExperimentPage(
            items=[say.experiment_document(each, holds.get(each.name)) for each in items], next=following
        )

    def experiment(self, name: say.ExperimentName) -> say.ExperimentDetail:
        """One experiment: its configuration, where it ran, what it began from, and how each attempt ended."""
        return say.experiment_detail(self._tracker.experiment(name))

    def comparison(
        self,
        experiment: Annotated[list[OneName], Query(max_length=100)],
        cursor: Cursor = None,
        limit: Limit = 1000,
    ) -> say.ComparisonPage:
        """Experiments side by side, two or more: how they stand, configuration, environment, and of each metric the
        last value, the least and the greatest. `values` are in the order of `experiments`, null where one has none."""
        found = self._tracker.compare(*experiment)
        rows = sorted(found.rows, key=_by_group)
        items, following = page(rows, _by_group, cursor, limit)
        return say.ComparisonPage(
            experiments=[each.name for each in found.experiments],
            items=[say.row_document(row) for row in items],
            next=following,
        )

    def performance(self, cursor: Cursor = None, limit: Limit = 100) -> say.PerformancePage:
        """How saves and loads have fared in the newest attempt of each experiment that has given figures: at its end,
        or with its last sign of life, which comes once a minute. Latencies are in seconds."""
        items, following = page(self._tracker.performance(), lambda each: [each[0]], cursor, limit)
        return say.PerformancePage(items=[say.performance_document(*each) for each in items], next=following)

    def metrics(self, experiment: Name) -> say.MetricNames:
        """The names of the metrics of an experiment: those it logged, and those of its checkpoints."""
        self._tracker.experiment(experiment)
        saved = {name for each in self.workspace.index.checkpoints(experiment) for name in each.metrics}
        return say.MetricNames(items=sorted(saved.union(self._tracker.metrics(experiment))))

    def series(
        self,
        experiment: Name,
        name: Name,
        lineage: OptionalName = None,
        cursor: Cursor = None,
        limit: Limit = 1000,
    ) -> say.PointPage:
        """The series of a metric, by step: of a lineage, or of the newest attempt that logged anything."""
        self._tracker.experiment(experiment)
        points = self._tracker.metric(experiment, name, lineage=lineage)
        items, following = page(points, lambda point: [point.step], cursor, limit)
        return say.PointPage(
            items=[
                say.PointDocument(
                    step=p.step, value=say.number(p.value), at=clock.to_text(p.at), attempt=p.attempt
                )
                for p in items
            ],
            next=following,
        )

    def checkpoints(
        self,
        experiment: OptionalName = None,
        tag: OptionalName = None,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> say.CheckpointPage:
        """Checkpoints, the newest first: all, those of an experiment, or those that bear a tag."""
        found = self.workspace.index.checkpoints(experiment)
        chosen = [each for each in found if tag is None or tag in each.tags]
        items, following = page(sorted(chosen, key=_newest_first), _newest_first, cursor, limit)
        return say.CheckpointPage(items=[say.checkpoint_document(each) for each in items], next=following)

    def checkpoint(
        self,
        ref: Annotated[str, Query(min_length=1, max_length=600)],
        metric: OptionalName = None,
        mode: Mode = "min",
    ) -> say.CheckpointDocument:
        """The checkpoint that a reference means: `[EXPERIMENT@]latest`, `best` (name the metric), `step=N`, a tag, or
        the beginning of an id."""
        return say.checkpoint_document(self._choosing.referred(ref, metric, mode))

    def one(self, id: say.Id) -> say.CheckpointDocument:  # noqa: A002
        """One checkpoint."""
        return say.checkpoint_document(self._choosing.by_id(id))

    def manifest(self, id: say.Id) -> Response:  # noqa: A002
        """The document that makes the checkpoint, as it stands in the store: docs/format.md says what is in it."""
        _, manifest = self._choosing.readable(id)  # what was checked, not what lies there a moment later
        return Response(
            seal(manifest), media_type="application/json", headers={"Cache-Control": "private, no-cache"}
        )

    def leaves(self, id: say.Id, cursor: Cursor = None, limit: Limit = 1000) -> say.LeafPage:  # noqa: A002
        """What is in a checkpoint, by path: tensors, and plain values as they are. No tensor is read."""
        _, manifest = self._choosing.readable(id)
        found: dict[str, say.LeafDocument] = {}
        for path, value in plain_leaves(manifest.state):
            found[path] = say.LeafDocument(
                path=path, dtype=None, shape=None, bytes=None, value=say.plain_json(value)
            )
        for path, (_, spec) in tensor_specs(manifest).items():
            found[path] = say.LeafDocument(
                path=path, dtype=spec.dtype, shape=list(spec.shape), bytes=dtypes.nbytes(spec)
            )
        items, following = page(
            (found[path] for path in sorted(found)), lambda leaf: [leaf.path], cursor, limit
        )
        return say.LeafPage(items=items, next=following)

    def diff(
        self,
        id: say.Id,  # noqa: A002
        old: Annotated[str | None, Query(pattern="^[0-7][0-9A-HJKMNP-TV-Z]{25}$")] = None,
        measure: bool = False,
    ) -> say.DiffDocument:
        """What a checkpoint changed of another (`old`), or of its parent. With `measure`, by how much: changed tensors
        are then read."""
        after, new_manifest = self._choosing.readable(id)
        other = old or after.parent
        if other is None:
            raise NotFoundError(
                f"{id} began from nothing and has no parent: name another with old=", kind="parent"
            )
        before, old_manifest = self._choosing.readable(other)
        found = difference(self.workspace.repository, old_manifest, new_manifest, measure=measure)
        return say.DiffDocument(
            old=say.checkpoint_document(before),
            new=say.checkpoint_document(after),
            same=found.same_state and not found.metrics,
            same_tensors=found.same_tensors,
            same_values=found.same_values,
            tensors=[_tensor(change) for change in found.tensors],
            values=[_value(change) for change in found.values],
            metrics=[_value(change) for change in found.metrics],
        )

    def retention(
        self,
        experiment: Name,
        keep_last: Count = None,
        keep_best: Count = None,
        metric: OptionalName = None,
        mode: Mode | None = None,
        keep_every_steps: Count = None,
        keep_every_minutes: Annotated[float | None, Query(gt=0, le=1e9)] = None,
        keep_tagged: OptionalName = None,
        keep_hourly: Count = None,
        keep_daily: Count = None,
        keep_weekly: Count = None,
        keep_within: Annotated[str | None, Query(max_length=100)] = None,
    ) -> say.RetentionDocument:
        """What retention policies would keep of an experiment and what not, each with its reasons. Changes nothing.
        They are those of `ckpt forget`: `keep_tagged` is a pattern (`*`: any tag), `keep_within` a size (`50 GB`)."""
        policies = asked_policies(
            keep_last=keep_last,
            keep_best=keep_best,
            metric=metric,
            mode=mode,
            keep_every_steps=keep_every_steps,
            keep_every_minutes=keep_every_minutes,
            keep_tagged=keep_tagged,
            keep_hourly=keep_hourly,
            keep_daily=keep_daily,
            keep_weekly=keep_weekly,
            keep_within=keep_within,
        )
        if not policies:
            raise UsageError("name a policy, as keep_last=3: those of `ckpt forget`", kind="option")
        decisions = decide_lineages(policies, self._known(experiment), RetentionContext(clock.now()))
        return say.RetentionDocument(
            items=[
                say.DecisionDocument(
                    checkpoint=say.checkpoint_document(one.checkpoint),
                    keep=one.keep,
                    reasons=list(one.reasons),
                )
                for one in decisions
            ]
        )

    def _known(self, experiment: str) -> list[Checkpoint]:
        found = self.workspace.index.checkpoints(experiment)
        if not found:
            self._tracker.experiment(experiment)  # raises, where there is none
        return found


def _newest_first(checkpoint: Checkpoint) -> list[Any]:
    return [-int(checkpoint.created_at.timestamp() * 1_000_000), checkpoint.id]


def _by_group(row: Row) -> list[Any]:
    return [GROUPS.index(row.group), row.name]


def _tensor(change: TensorChange) -> dict[str, Any]:
    facts = asdict(change)
    for side in ("old", "new"):
        spec = getattr(change, side)
        facts[side] = None if spec is None else {"dtype": spec.dtype, "shape": list(spec.shape)}
    return {name: say.plain_json(value) for name, value in facts.items()}


def _value(change: ValueChange) -> dict[str, Any]:
    sides = {"old": change.old, "new": change.new}
    return {"path": change.path} | {side: say.plain_json(v) for side, v in sides.items() if v is not ABSENT}
