"""Small SVG plots of a run, by matplotlib if it is there."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Curve, Results
from benchmarks.timing import Samples

__all__ = ["draw", "missing"]

BARS = {"save": "save", "load": "load", "stall": "stall", "training": "training", "memory": "memory"}
OURS, OTHERS, LIMITS = "#1b6ca8", "#b0b0b0", "#5a9e5a"
RAW = ("raw O_DIRECT", "one memcpy", "SHA-256", "no saves")


def missing() -> str | None:
    """Why nothing can be drawn; None where it can."""
    found = importlib.util.find_spec("matplotlib") is not None
    return None if found else "no plots: matplotlib is not installed (pip install matplotlib)"


def draw(results: Results, folder: Path) -> list[str]:
    """Draws one bar chart for the first race of each group, and one plot for each set of curves."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ckpt-core", "font.size": 8})
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for group, name in BARS.items():
        race = next((race for race in results.races if race[0] == group and any(race[2])), None)
        if race is not None:
            _bars(race[1], [each for each in race[2] if each], folder / f"{name}.svg")
            names.append(f"{name}.svg")
    plots: dict[str, list[Curve]] = {}
    for curve in results.curves:
        plots.setdefault(curve.plot, []).append(curve)
    for plot, curves in plots.items():
        _lines(curves, folder / f"{plot}.svg")
        names.append(f"{plot}.svg")
    return names


def _colour(name: str) -> str:
    if name.startswith("ckpt-core"):
        return OURS
    return LIMITS if name.startswith(RAW) else OTHERS


def _bars(title: str, found: Sequence[Samples], path: Path) -> None:
    ordered = sorted(found, key=lambda each: each.median, reverse=True)
    figure, axes = _axes(0.8 + 0.24 * len(ordered))
    scale, unit = (1e-6, "MB") if ordered[0].unit == "B" else (1.0, "seconds")
    medians = [each.median * scale for each in ordered]
    errors = [
        [(each.median - each.low) * scale for each in ordered],
        [(each.high - each.median) * scale for each in ordered],
    ]
    colours = [_colour(each.name) for each in ordered]
    axes.barh([each.name for each in ordered], medians, xerr=errors, color=colours, error_kw={"lw": 0.8})
    axes.set_xlabel(f"{unit}: less is better")
    _finish(figure, axes, title, path)


def _lines(curves: Sequence[Curve], path: Path) -> None:
    figure, axes = _axes(3.0)
    colours: dict[str, str] = {}
    for curve in curves:
        xs, ys = zip(*curve.points, strict=True)
        name, _, share = curve.line.partition(", p")  # the percentiles of one thing have one colour
        colour = colours.setdefault(name if share else curve.line, f"C{len(colours)}")
        style = "--" if share == "99" else "-"
        axes.plot(xs, ys, style, color=colour, marker="o", markersize=3, linewidth=1.2, label=curve.line)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(curves[0].x_label)
    axes.set_ylabel(curves[0].y_label)
    axes.grid(visible=True, which="major", linewidth=0.3)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    _finish(figure, axes, "", path)


def _axes(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, height), layout="constrained")
    return figure, figure.subplots()


def _finish(figure: Any, axes: Any, title: str, path: Path) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, loc="left", fontsize=8)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
