"""Experiments side by side: what they were configured with, where they ran, how far they came."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from ckpt_core.errors import NotFoundError
from ckpt_core.tracker.series import MetricSeries
from ckpt_core.tracker.tables import Tabular
from ckpt_core.tracker.views import Experiment, configuration_of

__all__ = ["GROUPS", "Comparison", "Row", "environment_of"]

GROUPS = ("status", "config", "environment", "metric")
"""What the facts that are compared belong to, in the order of the rows."""

_ONE_BY_ONE = ("packages", "frameworks", "hardware", "job")


@dataclass(frozen=True, slots=True)
class Row:
    """One fact of all the experiments, in their order; None where one does not have it."""

    group: str
    """One of GROUPS."""
    name: str
    values: tuple[Any, ...]

    @property
    def same(self) -> bool:
        """Whether all have the same."""
        return all(value == self.values[0] and type(value) is type(self.values[0]) for value in self.values)


@final
class Comparison(Tabular):
    """Experiments side by side. `rows` has everything, `differing` what is not the same."""

    def __init__(
        self, experiments: Sequence[Experiment], series: Mapping[str, Sequence[MetricSeries]]
    ) -> None:
        self.experiments = tuple(experiments)
        self.series = {name: {each.name: each for each in found} for name, found in series.items()}
        self.rows = (
            *self._facts(),
            *self._group("config", [configuration_of(each) for each in self.experiments]),
            *self._group("environment", [environment_of(each) for each in self.experiments]),
            *self._metrics(),
        )

    @property
    def differing(self) -> tuple[Row, ...]:
        """The rows in which not all experiments have the same."""
        return tuple(row for row in self.rows if not row.same)

    def columns(self) -> dict[str, Sequence[Any]]:
        columns: dict[str, Sequence[Any]] = {
            "group": [row.group for row in self.rows],
            "name": [row.name for row in self.rows],
        }
        for place, each in enumerate(self.experiments):
            name = f"{each.name} (experiment)" if each.name in ("group", "name") else each.name
            columns[name] = [row.values[place] for row in self.rows]
        return columns

    def title(self) -> str:
        return " and ".join(each.name for each in self.experiments)

    def plot(self, metric: str, ax: Any = None, **options: Any) -> Any:
        """Draws a metric of all the experiments with matplotlib; returns the axes. Raises MissingExtraError;
        NotFoundError where none has logged it."""
        from ckpt_core.tracker.plot import plot_series

        found = [own[metric] for own in self.series.values() if metric in own]
        if not found:
            raise NotFoundError(
                f"none of the experiments has logged {metric!r}", kind="metric", metric=metric
            )
        return plot_series(found, ax, **options)

    def _facts(self) -> Iterator[Row]:
        yield Row("status", "status", tuple(each.status for each in self.experiments))
        yield Row("status", "attempts", tuple(len(each.attempts) for each in self.experiments))
        yield Row("status", "tags", tuple(", ".join(each.tags) for each in self.experiments))

    def _metrics(self) -> Iterator[Row]:
        names = sorted({name for own in self.series.values() for name in own})
        for name in names:
            found = [self.series[each.name].get(name) for each in self.experiments]
            summaries = [{} if series is None else series.summary for series in found]
            for what in ("last", "min", "max"):
                points = [summary.get(what) for summary in summaries]
                yield Row(
                    "metric", f"{name} {what}", tuple(p.value if p is not None else None for p in points)
                )

    @staticmethod
    def _group(group: str, each: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
        for name in dict.fromkeys(name for one in each for name in one):
            yield Row(group, name, tuple(one.get(name) for one in each))


def environment_of(experiment: Experiment) -> dict[str, Any]:
    """What is known of where it ran, by name: `packages.numpy`, `git_commit`."""
    found: dict[str, Any] = {}
    for name, value in experiment.environment.items():
        if isinstance(value, Mapping) and name in _ONE_BY_ONE:
            found |= {f"{name}.{inner}": _text(each) for inner, each in value.items()}
        elif name != "pid":
            found[name] = _text(value)
    return found


def _text(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
