"""Tensors that live on a grid in space: voxel grids, hash grids, feature planes, fields of a PDE.

A tensor is seen as (leading, cells, trailing): what lies before its spatial axes, they themselves, and after them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Unpack

import numpy as np

from ckpt_core.errors import UsageError
from ckpt_core.hooks import HookOptions
from ckpt_core.watch.earlier import EarlierTensor
from ckpt_core.watch.pieces import PIECE, Array, as_floats, is_real, ranges, square_sum
from ckpt_core.watch.watcher import Action, Sight, TensorWatcher, check_limit

__all__ = ["Grid", "GridMonitor", "measure_grid"]


@dataclass(frozen=True, slots=True)
class Grid:
    """What is known of a grid. A cell is `occupied` where any of its values is beyond the threshold, `bad` where one
    is not finite, `dead` where all are what they were in the checkpoint before. `gradient`: mean over cells of the
    squared differences between neighbours. `change`: the norm of the change by the norm before. None: nothing of the
    same shape to compare with. Least and greatest of the finite values; NaN where there are none."""

    resolution: tuple[int, ...]
    cells: int
    occupied: int
    bad: int
    least: float
    greatest: float
    gradient: float
    dead: int | None = None
    change: float | None = None
    earlier: tuple[int, ...] | None = None
    """Its resolution in the checkpoint before, where that differs."""


@np.errstate(over="ignore", invalid="ignore")
def measure_grid(
    values: Array,
    before: EarlierTensor | None = None,
    *,
    axes: Sequence[int] | None = None,
    occupied_above: float = 0.0,
) -> Grid:
    """Looks at a grid, a piece at a time. `axes`: the spatial ones, which follow one another; all, if left out.

    Where channels stand before them, up to three bytes for each cell are needed to put the pieces together.
    """
    spatial = _spatial(values.ndim, axes)
    resolution = tuple(values.shape[axis] for axis in spatial)
    cells = math.prod(resolution)
    trailing = math.prod(values.shape[spatial[-1] + 1 :]) if spatial else 1
    leading = math.prod(values.shape[: spatial[0]]) if spatial else 1
    comparable = before is not None and before.shape == values.shape
    flat = values.reshape(-1)
    occupied, bad, changed = (_Cells(cells, trailing, leading > 1) for _ in range(3))
    least, greatest, moved, weight = math.inf, -math.inf, 0.0, 0.0
    for begin, end in _pieces(flat.size, cells, trailing):
        piece = as_floats(flat[begin:end])
        finite: Array | None = None
        if not math.isfinite(square_sum(piece)):
            finite = np.isfinite(piece)
            bad.add(begin, ~finite)
        kept = piece if finite is None else piece[finite]
        least = min(least, float(kept.min(initial=math.inf)))
        greatest = max(greatest, float(kept.max(initial=-math.inf)))
        occupied.add(begin, np.abs(piece) > occupied_above)
        if comparable:
            assert before is not None
            earlier = as_floats(before.values(begin, end))
            change = piece - earlier
            changed.add(begin, change != 0)
            moved += square_sum(change)
            weight += square_sum(earlier)
    return Grid(
        resolution=resolution,
        cells=cells,
        occupied=occupied.count,
        bad=bad.count,
        least=least if least <= greatest else math.nan,
        greatest=greatest if least <= greatest else math.nan,
        gradient=sum(_differences(flat, values.shape, axis) for axis in spatial) / max(cells, 1),
        dead=cells - changed.count if comparable else None,
        change=(math.sqrt(moved / weight) if weight else math.inf if moved else 0.0) if comparable else None,
        earlier=_changed_resolution(before, spatial, resolution),
    )


class _Cells:
    """Counts cells of which any value has some property. Where the values of a cell lie far apart, as `leading` axes
    have it, a mark for each cell puts them together."""

    def __init__(self, cells: int, trailing: int, leading: bool) -> None:
        self._cells = cells
        self._trailing = trailing
        self._leading = leading
        self._marks: Array | None = None
        self._count = 0

    def add(self, begin: int, found: Array) -> None:
        """Takes the values from number `begin` on, of whole cells."""
        if self._trailing > 1:
            found = _any_of(found.reshape(-1, self._trailing))
        if not self._leading:
            self._count += int(np.count_nonzero(found))
            return
        if self._marks is None:
            self._marks = np.zeros(self._cells, bool)
        first = begin // self._trailing % self._cells
        self._marks[first : first + found.size] |= found

    @property
    def count(self) -> int:
        """How many there are so far."""
        return self._count if self._marks is None else int(np.count_nonzero(self._marks))


def _any_of(rows: Array) -> Array:
    """Whether any of each row is true. Column by column where rows are short: so it is ten times as fast."""
    if rows.shape[1] > 16:
        long: Array = np.logical_or.reduce(rows, axis=1)
        return long
    found: Array = rows[:, 0].copy()
    for number in range(1, rows.shape[1]):
        np.logical_or(found, rows[:, number], out=found)
    return found


def _spatial(ndim: int, axes: Sequence[int] | None) -> tuple[int, ...]:
    if axes is None:
        return tuple(range(ndim))
    spatial = tuple(axis + ndim if axis < 0 else axis for axis in axes)
    if any(not 0 <= axis < ndim for axis in spatial):
        raise UsageError(f"axes={tuple(axes)} are not all axes of a tensor that has {ndim}", kind="option")
    return spatial


def _changed_resolution(
    before: EarlierTensor | None, spatial: tuple[int, ...], resolution: tuple[int, ...]
) -> tuple[int, ...] | None:
    if before is None or len(before.shape) <= max(spatial, default=-1):
        return None
    earlier = tuple(before.shape[axis] for axis in spatial)
    return earlier if earlier != resolution else None


def _pieces(size: int, cells: int, trailing: int) -> Iterator[tuple[int, int]]:
    """Ranges of whole cells, none of which goes beyond the last cell of a leading index."""
    row = cells * trailing
    for start in range(0, size, row or 1):
        for begin, end in ranges(row, trailing):
            yield start + begin, start + end


def _differences(flat: Array, shape: tuple[int, ...], axis: int) -> float:
    """The sum of squared differences between neighbours along an axis. Those with a value that is not finite are
    left out."""
    length, stride = shape[axis], math.prod(shape[axis + 1 :])
    block = length * stride
    if length < 2 or not flat.size:
        return 0.0
    total = 0.0
    if block <= PIECE:
        for begin, end in ranges(flat.size, block):
            piece = as_floats(flat[begin:end]).reshape(-1, length, stride)
            total += _finite_square_sum((piece[:, 1:] - piece[:, :-1]).reshape(-1))
        return total
    for start in range(0, flat.size, block):
        for begin, end in ranges(block - stride):
            near = as_floats(flat[start + begin : start + end])
            far = as_floats(flat[start + begin + stride : start + end + stride])
            total += _finite_square_sum(far - near)
    return total


def _finite_square_sum(values: Array) -> float:
    total = square_sum(values)
    if math.isfinite(total):
        return total
    kept = values[np.isfinite(values)].astype(np.float64)
    return square_sum(kept)


class GridMonitor(TensorWatcher):
    """Watches grids in space: resolution, occupancy, dead cells, range, gradient energy, change.

    `tensors`: paths, subtrees or shell patterns. `axes`: which axes are spatial, one after the other, as `(1, 2, 3)`
    of a tensor whose channels come first; left out, all are. `occupied_above`: a cell is occupied where the
    magnitude of one of its values is beyond it. What is complained of: cells that are not finite; an `occupancy`,
    or values (`value_range`), outside (least, most); more than a share of `max_dead` cells that did not change since
    the last checkpoint; a `max_gradient` energy or relative `max_change` exceeded; with `fixed`, another resolution
    than before. Raises UsageError.
    """

    topic = "grid"

    def __init__(
        self,
        tensors: str | Sequence[str],
        *,
        axes: Sequence[int] | None = None,
        occupied_above: float = 0.0,
        occupancy: tuple[float, float] | None = None,
        value_range: tuple[float, float] | None = None,
        max_dead: float | None = None,
        max_gradient: float | None = None,
        max_change: float | None = None,
        fixed: bool = False,
        compare: bool = True,
        action: Action = "warn",
        **options: Unpack[HookOptions],
    ) -> None:
        super().__init__(tensors, action=action, compare=compare, **options)
        check_limit("occupied_above", occupied_above)
        check_limit("max_dead", max_dead, most=1)
        check_limit("max_gradient", max_gradient)
        check_limit("max_change", max_change)
        _check_bounds("occupancy", occupancy)
        _check_bounds("value_range", value_range)
        if axes is not None and (not axes or any(after - axis != 1 for axis, after in pairwise(axes))):
            raise UsageError(
                f"axes={tuple(axes)} must follow one another, as (1, 2, 3); transpose the tensor if they do not",
                kind="option",
            )
        self.axes = None if axes is None else tuple(axes)
        self.occupied_above = occupied_above
        self.occupancy = occupancy
        self.value_range = value_range
        self.max_dead = max_dead
        self.max_gradient = max_gradient
        self.max_change = max_change
        self.fixed = fixed

    def suits(self, path: str, values: Array) -> bool:
        fits = values.ndim > 0 and is_real(values)
        if not fits and path in self._chosen.patterns:
            raise UsageError(
                f"{path} of shape {list(values.shape)} and dtype {values.dtype} is no grid of real numbers",
                kind="tensors",
                path=path,
            )
        return fits

    def examine(self, path: str, values: Array, before: EarlierTensor | None) -> Sight:
        found = measure_grid(values, before, axes=self.axes, occupied_above=self.occupied_above)
        metrics = {
            "cells": float(found.cells),
            "occupancy": found.occupied / found.cells if found.cells else 0.0,
            "not_finite": float(found.bad),
            "least": found.least,
            "greatest": found.greatest,
            "gradient": found.gradient,
        }
        metrics |= {f"resolution_{number}": float(length) for number, length in enumerate(found.resolution)}
        if found.dead is not None and found.change is not None:
            metrics |= {"dead": found.dead / found.cells if found.cells else 0.0, "change": found.change}
        return Sight(metrics, tuple(self._complaints(found, metrics)), found)

    def _complaints(self, found: Grid, metrics: dict[str, float]) -> Iterator[str]:
        if found.bad:
            yield f"{found.bad} of {found.cells} cells are not finite"
        if self.fixed and found.earlier is not None:
            yield f"its resolution is {_times(found.resolution)}, and was {_times(found.earlier)}"
        if self.occupancy is not None and not self.occupancy[0] <= metrics["occupancy"] <= self.occupancy[1]:
            yield f"{metrics['occupancy']:.3%} of its cells are occupied, outside {_between(self.occupancy)}"
        if self.value_range is not None and not (
            self.value_range[0] <= found.least and found.greatest <= self.value_range[1]
        ):
            yield f"its values go from {found.least:.4g} to {found.greatest:.4g}, outside {_between(self.value_range)}"
        for name, limit, what in (
            ("dead", self.max_dead, "share of cells that did not change"),
            ("gradient", self.max_gradient, "gradient energy"),
            ("change", self.max_change, "change since the last checkpoint"),
        ):
            if limit is not None and metrics.get(name, 0.0) > limit:
                yield f"its {what} is {metrics[name]:.4g}, over {limit:g}"


def _check_bounds(name: str, bounds: tuple[float, float] | None) -> None:
    if bounds is not None and not (len(bounds) == 2 and bounds[0] <= bounds[1]):
        raise UsageError(f"{name}={bounds!r} must be (least, most)", kind="option")


def _times(resolution: tuple[int, ...]) -> str:
    return " × ".join(map(str, resolution))


def _between(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:g} to {bounds[1]:g}"
