"""The health of weights: NaN, infinities, norms, units that are dead, and how large updates are beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Unpack

import numpy as np

from ckpt_core.errors import UsageError
from ckpt_core.hooks import HookOptions
from ckpt_core.tree import dtypes
from ckpt_core.watch.earlier import EarlierTensor
from ckpt_core.watch.pieces import Array, as_floats, is_numeric, ranges, square_sum
from ckpt_core.watch.watcher import Action, Sight, TensorWatcher, check_limit

__all__ = ["Health", "TensorHealth", "Units", "measure_health"]

Units = Literal["first", "last"]
"""The axis of a weight that counts its units: the first as PyTorch has it, the last as Keras and JAX have it."""


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of a tensor. `squares`: the sum of the squares of its finite values. `units` is 0 for a tensor
    of less than two axes. `update`: the sum of the squares of what changed since the checkpoint before, whose own
    is `earlier`; None where there is none of the same shape."""

    values: int
    nan: int
    infinite: int
    squares: float
    units: int
    dead: int
    update: float | None = None
    earlier: float | None = None


@np.errstate(over="ignore", invalid="ignore")
def measure_health(values: Array, before: EarlierTensor | None = None, *, units: Units = "first") -> Health:
    """Looks at a tensor, a piece at a time. A unit is dead where all its weights are 0."""
    flat = values.reshape(-1)
    counted = values.ndim >= 2 and flat.size > 0
    length = (values.shape[0] if units == "first" else values.shape[-1]) if counted else 0
    parts = 2 if dtypes.family(dtypes.name_of_numpy(values.dtype) or "") == "complex" else 1
    lines = (_Rows if units == "first" else _Columns)(length, flat.size, parts) if counted else None
    comparable = before is not None and before.shape == values.shape
    nan = infinite = 0
    squares = update = earlier = 0.0
    for begin, end in ranges(flat.size, 1 if lines is None else lines.multiple):
        piece = as_floats(flat[begin:end])
        part = square_sum(piece) if lines is None else lines.add(piece, begin)
        if not math.isfinite(part):
            nans, infinities = np.isnan(piece), np.isinf(piece)
            nan += int(np.count_nonzero(nans))
            infinite += int(np.count_nonzero(infinities))
            part = square_sum(piece[~(nans | infinities)].astype(np.float64))
        squares += part
        if comparable:
            assert before is not None
            there = as_floats(before.values(begin, end))
            update += square_sum(piece - there)
            earlier += square_sum(there)
    return Health(
        values=flat.size,
        nan=nan,
        infinite=infinite,
        squares=squares,
        units=length,
        dead=0 if lines is None else lines.dead,
        update=update if comparable else None,
        earlier=earlier if comparable else None,
    )


class _Rows:
    """Counts rows of zeros. Pieces are of whole rows, or parts of one. `parts`: numbers that make a value."""

    def __init__(self, count: int, size: int, parts: int) -> None:
        self.multiple = size // count
        self.dead = 0
        self._width = self.multiple * parts
        self._seen, self._alive = 0, False  # of a row that is more than a piece

    def add(self, piece: Array, begin: int) -> float:
        """The sum of the squares of a piece."""
        if piece.size < self._width:
            total = square_sum(piece)
            self._seen += piece.size
            self._alive = self._alive or total != 0 or bool(piece.any())
            if self._seen == self._width:
                self.dead += not self._alive
                self._seen, self._alive = 0, False
            return total
        rows = piece.reshape(-1, self._width)
        squares = np.einsum("ij,ij->i", rows, rows)
        still = np.flatnonzero(squares == 0)  # or so small that their squares are not to be told from 0
        self.dead += int(np.count_nonzero(~rows[still].any(axis=1)))
        return float(squares.sum(dtype=np.float64))


class _Columns:
    """Counts columns of zeros, in pieces of whole rows or parts of one."""

    def __init__(self, count: int, size: int, parts: int) -> None:
        self.multiple = count
        self._parts = parts
        self._alive = np.zeros(count * parts, bool)

    @property
    def dead(self) -> int:
        """Columns without anything but zeros so far."""
        return int(np.count_nonzero(~self._alive.reshape(self.multiple, self._parts).any(axis=1)))

    def add(self, piece: Array, begin: int) -> float:
        """The sum of the squares of a piece that begins with value `begin` of all."""
        width = self._alive.size
        if piece.size < width:
            first = begin % self.multiple * self._parts
            self._alive[first : first + piece.size] |= piece != 0
            return square_sum(piece)
        rows = piece.reshape(-1, width)
        squares = np.einsum("ij,ij->j", rows, rows)
        still = np.flatnonzero(~self._alive & (squares == 0))
        self._alive |= squares != 0
        self._alive[still] = rows[:, still].any(axis=0)
        return float(squares.sum(dtype=np.float64))


class TensorHealth(TensorWatcher):
    """Looks after the tensors of every state before it is written.

    `tensors`: paths, subtrees or shell patterns; left out, all that hold floating-point numbers. `units`: the axis
    that counts the units of a weight, the first as in PyTorch or the last as in Keras and JAX. Values that are not
    finite are always complained of; a tensor whose norm is over `max_norm`, whose units are dead (all weights 0) by
    more than a share of `max_dead`, or that changed since the last checkpoint by more than `max_update` of its norm,
    if you say so. `each` adds series for every tensor to those for all together. Raises UsageError.
    """

    topic = "health"

    def __init__(
        self,
        tensors: str | Sequence[str] | None = None,
        *,
        units: Units = "first",
        max_norm: float | None = None,
        max_dead: float | None = None,
        max_update: float | None = None,
        each: bool = False,
        compare: bool = True,
        action: Action = "warn",
        **options: Unpack[HookOptions],
    ) -> None:
        super().__init__(tensors, action=action, compare=compare, **options)
        if units not in ("first", "last"):
            raise UsageError(f"units={units!r} must be 'first' or 'last'", kind="option")
        check_limit("max_norm", max_norm)
        check_limit("max_dead", max_dead, most=1)
        check_limit("max_update", max_update)
        self.units: Units = units
        self.max_norm = max_norm
        self.max_dead = max_dead
        self.max_update = max_update
        self.each = each

    def suits(self, path: str, values: Array) -> bool:
        return is_numeric(values)

    def examine(self, path: str, values: Array, before: EarlierTensor | None) -> Sight:
        found = measure_health(values, before, units=self.units)
        metrics = _metrics(found)
        return Sight(metrics if self.each else {}, tuple(self._complaints(found, metrics)), found)

    def summary(self, sights: Mapping[str, Sight]) -> Sight:
        found: list[Health] = [sight.measured for sight in sights.values()]
        compared = [each for each in found if each.update is not None]
        total = Health(
            values=sum(each.values for each in found),
            nan=sum(each.nan for each in found),
            infinite=sum(each.infinite for each in found),
            squares=sum(each.squares for each in found),
            units=sum(each.units for each in found),
            dead=sum(each.dead for each in found),
            update=sum(each.update or 0.0 for each in compared) if compared else None,
            earlier=sum(each.earlier or 0.0 for each in compared) if compared else None,
        )
        return Sight(_metrics(total))

    def _complaints(self, found: Health, metrics: Mapping[str, float]) -> Iterator[str]:
        if found.nan or found.infinite:
            yield f"{found.nan} NaN and {found.infinite} infinite among {found.values} values"
        for name, limit, what in (
            ("norm", self.max_norm, "norm"),
            ("dead", self.max_dead, "share of dead units"),
            ("update", self.max_update, "change since the last checkpoint, by its norm,"),
        ):
            if limit is not None and metrics.get(name, 0.0) > limit:
                yield f"its {what} is {metrics[name]:.4g}, over {limit:g}"


def _metrics(found: Health) -> dict[str, float]:
    metrics = {"nan": float(found.nan), "infinite": float(found.infinite), "norm": math.sqrt(found.squares)}
    if found.units:
        metrics["dead"] = found.dead / found.units
    if found.update is not None and found.earlier is not None:
        if found.earlier:
            metrics["update"] = math.sqrt(found.update / found.earlier)
        else:
            metrics["update"] = math.inf if found.update else 0.0
    return metrics
