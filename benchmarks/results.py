"""What a run found: rows with goals, the raw samples behind them, and curves. Printing is `report`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.timing import Samples, best_of

__all__ = ["Curve", "Goal", "Results", "Row", "Settings"]


@dataclass(frozen=True)
class Settings:
    """How a run was asked for. `work`: a folder on the disk that is measured."""

    quick: bool
    rounds: int
    work: Path

    @property
    def warm_up(self) -> bool:
        """Whether each race begins with a round that is not counted."""
        return not self.quick

    def state(self, name: str) -> str:
        """The state of this name, or the small one in its place."""
        small = {
            "standard": "small",
            "bf16": "small bf16",
            "one tensor": "one small tensor",
            "LoRA": "small LoRA",
        }
        return small.get(name, name) if self.quick else name


@dataclass(frozen=True)
class Goal:
    """A figure of `docs/performance.md` and the bound that it has to keep."""

    name: str
    sign: str
    bound: float
    unit: str = ""

    def met(self, value: float) -> bool:
        """Whether a value keeps the bound."""
        return value >= self.bound if self.sign == ">=" else value <= self.bound

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:,g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Row:
    """One line of the table. `value` is the ratio of medians, or what the goal is about."""

    group: str
    figure: str
    ours: Samples | None = None
    neighbour: Samples | None = None
    limit: Samples | None = None
    value: float | None = None
    unit: str = ""
    goal: Goal | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """None where there is no goal."""
        if self.goal is None:
            return None
        return self.value is not None and self.goal.met(self.value)


@dataclass(frozen=True)
class Curve:
    """One line of a plot: what `figure` was at each x. Lines of one `plot` share the axes."""

    plot: str
    line: str
    x_label: str
    y_label: str
    points: tuple[tuple[float, float], ...]


@dataclass
class Results:
    """Everything that a run found so far."""

    rows: list[Row] = field(default_factory=list)
    races: list[tuple[str, str, list[Samples]]] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    def race(self, group: str, figure: str, samples: Mapping[str, Samples]) -> None:
        """Keeps the raw samples of every contender."""
        self.races.append((group, figure, list(samples.values())))

    def add(
        self,
        group: str,
        figure: str,
        *,
        ours: Samples | None = None,
        neighbour: Samples | None = None,
        limit: Samples | None = None,
        value: float | None = None,
        unit: str = "",
        goal: Goal | None = None,
        note: str = "",
    ) -> None:
        """Adds a line to the table."""
        self.rows.append(Row(group, figure, ours, neighbour, limit, value, unit, goal, note))

    def not_measured(self, group: str, figure: str, why: str, goal: Goal | None = None) -> None:
        """A line that says why there is no figure; its goal counts as not met."""
        self.add(group, figure, goal=goal, note=why)

    def against_limit(
        self,
        group: str,
        figure: str,
        ours: Samples,
        limit: Samples,
        goal: Goal | None = None,
        *,
        times: bool = False,
    ) -> None:
        """The share of the limit's speed that ours has; or how many `times` the limit's seconds ours takes."""
        if not ours or not limit:
            self.not_measured(group, figure, ours.problem or limit.problem or "no samples", goal)
            return
        value = ours.median / limit.median if times else limit.median / ours.median
        self.add(group, figure, ours=ours, limit=limit, value=value, goal=goal)

    def against_neighbours(
        self,
        group: str,
        figure: str,
        ours: Samples,
        neighbours: Sequence[Samples],
        goal: Goal | None = None,
        *,
        times: bool = False,
    ) -> None:
        """How many times quicker ours is than the fastest neighbour; or how many `times` its seconds ours takes."""
        fastest = best_of(neighbours)
        if not ours or fastest is None:
            self.not_measured(group, figure, ours.problem or "no neighbour is installed", goal)
            return
        value = ours.median / fastest.median if times else fastest.median / ours.median
        self.add(group, figure, ours=ours, neighbour=fastest, value=value, goal=goal)
