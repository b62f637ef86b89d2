"""Tensors looked at a piece at a time, as numbers that can be reckoned with. The memory it takes does not grow.

A piece is small enough to stay in a core's own cache, so that a second look at it costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ckpt_core.tree import dtypes

__all__ = ["PIECE", "Array", "as_floats", "is_numeric", "is_real", "ranges", "square_sum"]

Array = npt.NDArray[Any]

PIECE = 1 << 18
"""Values in a piece: a megabyte of float32."""


def is_numeric(values: Array) -> bool:
    """Whether it holds floating-point numbers, real or complex, of whatever width."""
    return _family(values) in ("float", "complex")


def is_real(values: Array) -> bool:
    """Whether it holds floating-point numbers, and no complex ones."""
    return _family(values) == "float"


def ranges(size: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """(begin, end) of each piece of so many values. None ends inside a group of `multiple` values, unless one
    group is more than a piece: then none goes beyond its end."""
    if multiple > PIECE:
        for group in range(0, size, multiple):
            for begin in range(group, group + multiple, PIECE):
                yield begin, min(begin + PIECE, group + multiple)
        return
    step = PIECE // multiple * multiple
    for begin in range(0, size, step):
        yield begin, min(begin + step, size)


def as_floats(values: Array) -> Array:
    """Real numbers of the machine: float32 where that holds every value of the dtype, float64 otherwise.

    A complex number becomes two. What is float32 already is not copied.
    """
    dtype = values.dtype
    if dtype == np.float32:
        return values
    if dtype.kind == "c":
        return as_floats(values.view(f"{dtype.byteorder}f{dtype.itemsize // 2}"))
    if dtype.name in ("complex32", "bcomplex32"):
        part = np.float16 if dtype.name == "complex32" else dtypes.numpy_dtype("BF16")
        return as_floats(values.view(part))
    if dtype.itemsize == 1 and dtype.kind not in "biu":
        return _table(dtype).take(values.view(np.uint8))  # casting float8 itself takes five times as long
    return values.astype(np.float32 if dtype.itemsize <= 2 else np.float64)


def square_sum(values: Array) -> float:
    """The sum of the squares of real numbers. Not finite where one of them is not, or where it overflows."""
    return float(np.dot(values, values))


def _family(values: Array) -> str | None:
    name = dtypes.name_of_numpy(values.dtype)
    return None if name is None else dtypes.family(name)


@lru_cache(16)
def _table(dtype: np.dtype[Any]) -> Array:
    table: Array = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
    return table
