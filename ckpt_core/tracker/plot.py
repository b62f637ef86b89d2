"""Series drawn with matplotlib, where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ckpt_core.tracker.tables import required

__all__ = ["plot_series"]


class Drawn(Protocol):
    """What can be drawn: values by step."""

    experiment: str
    name: str
    steps: Any
    values: Any

    def title(self) -> str: ...


def plot_series(series: Sequence[Drawn], ax: Any = None, **options: Any) -> Any:
    """Draws each series by step, into `ax` or a figure of its own; returns the axes. Raises MissingExtraError."""
    if ax is None:
        ax = required("matplotlib.pyplot", "plot").subplots()[1]
    names = {each.name for each in series}
    for each in series:
        label = each.experiment if len(names) == 1 else each.title()
        ax.plot(each.steps, each.values, **{"label": label, **options})
    ax.set_xlabel("step")
    if len(names) == 1:
        ax.set_ylabel(names.pop())
    ax.legend()
    return ax
