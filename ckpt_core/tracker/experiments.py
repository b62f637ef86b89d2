"""What users ask about experiments: which there are, how they stand, what they logged, how they compare."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Self, final

from ckpt_core.configuration import conditions
from ckpt_core.errors import NotFoundError, UsageError
from ckpt_core.format.names import check_asked, check_name
from ckpt_core.model import AttemptFacts, MetricPoint
from ckpt_core.perf.figures import are_figures
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.repository import layout
from ckpt_core.stores import Store
from ckpt_core.tracker.comparison import Comparison
from ckpt_core.tracker.log import check_metric
from ckpt_core.tracker.series import MetricSeries
from ckpt_core.tracker.views import STATUSES, AttemptView, Experiment, Experiments, experiment_of

__all__ = ["ExperimentTracker"]

_EXPERIMENT = "an experiment's name"


@final
class ExperimentTracker:
    """The experiments of a store: configuration, tags, parent, status, environment, and metric series.

    `root`: a path, a URL, a Store or an open Workspace; nothing is created. `catalog`: as for CheckpointManager. A
    manager has one as `manager.tracker`, which is closed with it; close any other one, or use it in a `with` block.
    Everything is as the store has it now, whoever wrote it, and also while the catalog is away. Metrics are logged
    by `CheckpointManager.log`. Thread-safe. Raises NotFoundError (kind `store`), StoreError, FormatError,
    CorruptionError.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | Store | Workspace,
        *,
        catalog: str | None = None,
        own: str | None = None,
    ) -> None:
        self._opened = not isinstance(root, Workspace)
        self._workspace = root if isinstance(root, Workspace) else Workspace.open(root, catalog=catalog)
        self._own = own

    # -- experiments -----------------------------------------------------------------------------

    def experiments(
        self,
        *,
        tags: str | Iterable[str] = (),
        status: str | None = None,
        config: Mapping[str, Any] | Iterable[str] | str = (),
    ) -> Experiments:
        """Experiments by name: those that bear all the tags, have the status, and whose configuration is so.

        `config`: `{"optimizer.lr": 0.1}`, or texts as `"optimizer.lr >= 0.01"` (`=`, `!=`, `<`, `<=`, `>`, `>=`), of
        which all must hold. A value that is not there fulfils nothing. Raises UsageError.
        """
        if status is not None and status not in STATUSES:
            raise UsageError(f"status={status!r} must be one of {', '.join(STATUSES)}", kind="option")
        wanted = {check_asked(tag, "a tag") for tag in ([tags] if isinstance(tags, str) else tags)}
        asked = conditions(config)
        facts = self._workspace.facts.experiments(tags=sorted(wanted), conditions=asked)
        living = self._living()
        found = [experiment_of(each, living) for each in facts]
        return Experiments(
            [
                each
                for each in found
                if wanted <= set(each.tags)
                and status in (None, each.status)
                and all(condition.holds(each.config) for condition in asked)
            ]
        )

    def experiment(self, name: str) -> Experiment:
        """One experiment. Raises UsageError; NotFoundError, which names those that there are."""
        check_asked(name, _EXPERIMENT)
        found = self._workspace.facts.experiments(name)
        if not found:
            known = [each.name for each in self._workspace.facts.experiments()]
            said = f"there are {', '.join(map(repr, known[:10]))}" if known else "there are none yet"
            raise NotFoundError(
                f"there is no experiment {name!r}: {said}", kind="experiment", experiment=name
            )
        return experiment_of(found[0], self._living())

    def tag(self, experiment: str, tag: str) -> None:
        """Puts a tag on an experiment. Durable when this returns. Raises NotFoundError, UsageError, StoreError."""
        check_name(tag, "a tag")
        if experiment != self._own:
            self.experiment(experiment)
        space = self._workspace
        with space.audited("tag-experiment", experiment, tag=tag):
            space.experiments.set_tag(experiment, tag)
        space.index.tell(lambda catalog: catalog.set_experiment_tag(experiment, tag))

    def untag(self, experiment: str, tag: str) -> None:
        """Takes a tag off an experiment; one that is not there is no error. Raises UsageError, StoreError."""
        check_asked(experiment, _EXPERIMENT)
        check_asked(tag, "a tag")
        space = self._workspace
        with space.audited("untag-experiment", experiment, tag=tag):
            space.experiments.remove_tag(experiment, tag)
            if space.mirror is not None:
                space.mirror.removed([layout.experiment_tag_key(experiment, tag)])
        space.index.tell(lambda catalog: catalog.remove_experiment_tag(experiment, tag))

    def performance(self) -> list[tuple[str, AttemptView, dict[str, Any]]]:
        """The figures of the newest attempt of each experiment that gave some, with its name: what its manager's
        `stats` said at its end, or with its last sign of life, which comes once a minute."""
        living = self._living()
        reports = {lease.id: lease.report for _, lease in self._workspace.repository.leases.living()}
        found = []
        for facts in self._workspace.facts.experiments():
            view = experiment_of(facts, living).newest
            if view is None:
                continue
            newest = facts.attempts[-1]
            figures = reports.get(newest.lease or "") or self._workspace.experiments.performance(newest)
            if figures and are_figures(figures):
                found.append((facts.name, view, figures))
        return found

    # -- metrics ---------------------------------------------------------------------------------

    def metrics(self, experiment: str) -> list[str]:
        """The names of the metrics that an experiment has logged, sorted: by any of its attempts. Raises UsageError."""
        check_asked(experiment, _EXPERIMENT)
        catalog = self._workspace.facts.series(experiment)
        if catalog is not None:
            return catalog.metric_names(experiment, logged=True)
        segments = self._workspace.segments.all(experiment)
        return sorted({point.name for _, _, points in segments for point in points})

    def metric(self, experiment: str, name: str, *, lineage: str | None = None) -> MetricSeries:
        """The series of a metric in one training effort, through all its resumes: that of the newest attempt that
        has logged anything, unless a `lineage` is given. Empty where it was not logged. Raises UsageError."""
        check_asked(experiment, _EXPERIMENT)
        check_metric(name)
        catalog = self._workspace.facts.series(experiment)
        if catalog is not None:
            return MetricSeries(experiment, name, catalog.metric_columns(experiment, name, lineage))
        return self._by_store(experiment, name, lineage)

    def best(
        self,
        metric: str,
        mode: Literal["min", "max"] = "min",
        *,
        tags: str | Iterable[str] = (),
        status: str | None = None,
        config: Mapping[str, Any] | Iterable[str] | str = (),
    ) -> list[tuple[Experiment, MetricPoint]]:
        """Experiments by their best value of a metric, the best first, each with the point. Those that have not
        logged it, or nothing but NaN, are left out. The rest is as for `experiments`."""
        ranked = []
        for each in self.experiments(tags=tags, status=status, config=config):
            try:
                ranked.append((each, self.metric(each.name, metric).best(mode)))
            except NotFoundError:
                continue
        sign = 1.0 if mode == "min" else -1.0
        return sorted(ranked, key=lambda pair: sign * pair[1].value)

    def compare(self, *names: str) -> Comparison:
        """Experiments side by side: configuration, environment, metrics. Raises NotFoundError, UsageError."""
        if len(set(names)) < 2:
            raise UsageError("name two experiments or more to compare", kind="compare")
        found = [self.experiment(name) for name in dict.fromkeys(names)]
        series = {
            each.name: [self.metric(each.name, metric) for metric in self.metrics(each.name)]
            for each in found
        }
        return Comparison(found, series)

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Closes the store, unless it is a manager's or was open before. May be repeated."""
        if self._opened:
            self._opened = False
            self._workspace.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _repr_html_(self) -> str:
        return self.experiments()._repr_html_()

    def __repr__(self) -> str:
        return f"<ExperimentTracker {self._workspace.repository.store.url}>"

    # -- details ---------------------------------------------------------------------------------

    def _living(self) -> _Living:
        return _Living(self._workspace)

    def _by_store(self, experiment: str, name: str, lineage: str | None) -> MetricSeries:
        """Without a catalog: what the segments say, in the order in which they would be put there."""
        segments = sorted(
            self._workspace.segments.all(experiment), key=lambda found: (found[1].number, found[1].id)
        )
        chosen = lineage if lineage is not None else segments[-1][1].lineage if segments else None
        effective = {
            point.step: (point.step, point.value, point.at, point.attempt)
            for _, attempt, points in segments
            if attempt.lineage == chosen
            for point in points
            if point.name == name
        }
        return MetricSeries(experiment, name, [effective[step] for step in sorted(effective)])


class _Living:
    """Whether attempts are alive: their leases are looked at once, when first asked."""

    def __init__(self, workspace: Workspace) -> None:
        self._leases = workspace.repository.leases
        self._ids: frozenset[str] | None = None

    def __call__(self, facts: AttemptFacts) -> bool:
        if self._ids is None:
            self._ids = frozenset(lease.id for _, lease in self._leases.living())
        return facts.lease in self._ids
