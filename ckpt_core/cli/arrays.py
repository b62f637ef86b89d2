"""A stored tensor for people: the slice they ask for, its statistics, its values as text or JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckpt_core.errors import UsageError
from ckpt_core.pipeline.opened import LazyTensor

__all__ = ["Statistics", "listed", "parse_slice", "pieces", "statistics", "text_of"]

Array = npt.NDArray[Any]
_PIECE = 16 << 20
_BLOCK = 1 << 17


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of the finite values; the measures are None where there are none, or where values are no numbers."""

    elements: int
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    std: float | None = None
    norm: float | None = None
    zeros: int = 0
    nan: int = 0
    infinite: int = 0


def parse_slice(text: str) -> tuple[Any, ...]:
    """`0:10, :, -1` as what indexes an array. Raises UsageError."""
    parts: list[Any] = []
    for part in text.strip().removeprefix("[").removesuffix("]").split(","):
        word = part.strip()
        try:
            if word == "...":
                parts.append(Ellipsis)
            elif ":" in word:
                bounds = [int(bound) if bound.strip() else None for bound in word.split(":")]
                parts.append(slice(*bounds))
            else:
                parts.append(int(word))
        except (ValueError, TypeError):
            raise UsageError(f"{text!r} is not a slice: write it as 0:10 or 0:10,:,3", kind="slice") from None
    return tuple(parts)


def pieces(tensor: LazyTensor, key: tuple[Any, ...] | None) -> Iterator[Array]:
    """The values that a slice means (None: all), some rows at a time where it is all and large."""
    if key is not None:
        try:
            yield np.asarray(tensor[key])
        except (IndexError, ValueError) as error:
            raise UsageError(f"the slice does not fit {list(tensor.shape)}: {error}", kind="slice") from None
        return
    if not tensor.shape or tensor.nbytes <= _PIECE or tensor.shape[0] < 2:
        yield np.asarray(tensor.read())
        return
    rows = max(1, _PIECE * tensor.shape[0] // tensor.nbytes)
    for begin in range(0, tensor.shape[0], rows):
        yield np.asarray(tensor[begin : begin + rows])


def statistics(parts: Iterator[Array] | list[Array]) -> Statistics:
    """In one pass and float64. Complex values count by their magnitude."""
    elements = zeros = nan = infinite = count = 0
    low, high, mean, spread, squares = math.inf, -math.inf, 0.0, 0.0, 0.0
    numeric = True
    with np.errstate(all="ignore"):
        for part in (block for whole in parts for block in _blocks(whole)):
            elements += part.size
            wide = _numbers(part)
            if wide is None:
                numeric = False
                continue
            zeros += int(np.count_nonzero(wide == 0))
            nan += int(np.count_nonzero(np.isnan(wide)))
            infinite += int(np.count_nonzero(np.isinf(wide)))
            wide = wide[np.isfinite(wide)]
            if not wide.size:
                continue
            low, high = min(low, float(wide.min())), max(high, float(wide.max()))
            squares += float(np.square(wide).sum())
            # Chan's way of joining the means and spreads of two parts.
            middle, total = float(wide.mean()), count + wide.size
            spread += float(((wide - middle) ** 2).sum()) + (middle - mean) ** 2 * count * wide.size / total
            mean += (middle - mean) * wide.size / total
            count = total
    if not numeric or not count:
        return Statistics(elements, zeros=zeros, nan=nan, infinite=infinite)
    return Statistics(
        elements, low, high, mean, math.sqrt(spread / count), math.sqrt(squares), zeros, nan, infinite
    )


def _blocks(values: Array) -> Iterator[Array]:
    """Pieces that are small as float64, too."""
    flat = values.reshape(-1)
    for begin in range(0, flat.size, _BLOCK):
        yield flat[begin : begin + _BLOCK]


def listed(values: Array) -> Any:
    """Nested lists that JSON can hold; complex values as `[re, im]`."""
    if values.dtype.kind == "c":
        return np.stack([values.real, values.imag], axis=-1).tolist()
    if values.dtype.kind in "biuf":
        return values.tolist()
    if values.dtype.kind in "SUMm":
        return values.astype(str).tolist()
    return values.astype(np.float64).tolist()  # ml_dtypes' own


def text_of(values: Array, width: int | None, everything: bool) -> str:
    """The values as numpy prints them: shortened in the middle, unless all are asked for."""
    shown = values if values.dtype.kind in "biufcSUMm" else values.astype(np.float32)
    return np.array2string(
        shown,
        threshold=values.size + 1 if everything else 200,
        edgeitems=3,
        max_line_width=width or 100,
        precision=6,
        separator=" ",
    )


def _numbers(part: Array) -> npt.NDArray[np.float64] | None:
    if part.dtype.kind in "SUMm":
        return None
    if part.dtype.kind == "c":
        return np.abs(part.astype(np.complex128))
    return part.astype(np.float64)
