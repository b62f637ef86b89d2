"""How much tensors changed: element by element, a chunk at a time, several tensors at once."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckpt_core.format.documents import Manifest
from ckpt_core.model import TensorSpec
from ckpt_core.repository import ChunkReader, Repository
from ckpt_core.tree import dtypes, registry

__all__ = ["Measure", "measure_all"]

_BLOCK = 1 << 17  # elements compared at once: what fits a processor's cache
_THREADS = 4

Array = npt.NDArray[Any]


@dataclass(slots=True)
class Measure:
    """Sums over the elements of one tensor, block by block. For their meaning see `TensorChange`."""

    changed: int = 0
    not_finite: int = 0
    max_abs: float | None = None
    squares: float = 0.0
    norm: float = 0.0
    numeric: bool = True

    def unchanged(self, old: Array) -> None:
        """A block that both sides have in common: only the norm of the old is of interest."""
        wide = _as_float(old)
        if wide is not None:
            self.norm += _squared(wide)

    def compare(self, old: Array, new: Array) -> None:
        """A block that may differ."""
        differs = _differs(old, new)
        self.changed += int(np.count_nonzero(differs))
        wide = _as_float(old)
        gap = _gap(old, new, wide)
        if wide is None or gap is None:
            self.numeric = False
            return
        self.norm += _squared(wide)
        largest = float(gap.max())
        if not math.isfinite(largest):
            finite = np.isfinite(gap)
            self.not_finite += int(np.count_nonzero(differs & ~finite))
            gap = gap[finite]
            if not gap.size:
                return
            largest = float(gap.max())
        self.max_abs = max(self.max_abs or 0.0, largest)
        self.squares += float(np.square(gap).sum())

    @property
    def relative(self) -> float | None:
        """The norm of the difference over that of the old tensor."""
        if not self.numeric or self.max_abs is None:
            return None
        if not self.norm:
            return math.inf if self.squares else 0.0
        return math.sqrt(self.squares) / math.sqrt(self.norm)


def measure_all(
    repository: Repository,
    old: Manifest,
    new: Manifest,
    jobs: list[tuple[int, int]],
    progress: Callable[[int, int], None] | None,
) -> dict[tuple[int, int], Measure]:
    """Compares pairs of tensors of one shape (indices in the old and in the new manifest).

    Raises CorruptionError. Interrupted, it stops within a chunk.
    """
    sizes = [dtypes.nbytes(TensorSpec(old.tensors[a].dtype, old.tensors[a].shape)) for a, _ in jobs]
    before, after = repository.reader(old, "lazy"), repository.reader(new, "lazy")
    measured: dict[tuple[int, int], Measure] = {}
    done = 0
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ckpt-diff")
    stop = threading.Event()
    try:
        results = pool.map(lambda job: _measure(before, after, job, stop), jobs)
        for job, size, measure in zip(jobs, sizes, results, strict=True):
            measured[job] = measure
            done += size
            if progress is not None:
                progress(done, sum(sizes))
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        before.close()
        after.close()
    return measured


def _measure(before: ChunkReader, after: ChunkReader, job: tuple[int, int], stop: threading.Event) -> Measure:
    measure = Measure()
    one, two = job
    old, new = before.spec(one), after.spec(two)
    equal = old == new and before.manifest.chunk_bytes == after.manifest.chunk_bytes
    with np.errstate(all="ignore"):
        for begin, end in _spans(old, new, before.manifest.chunk_bytes):
            if stop.is_set():
                break
            same = False
            if equal:
                number = dtypes.nbytes(TensorSpec(old.dtype, (begin,))) // before.manifest.chunk_bytes
                same = _chunk(before, one, number) == _chunk(after, two, number) and _aligned(old, before)
            left = _read(before, one, old.dtype, begin, end)
            right = None if same else _read(after, two, new.dtype, begin, end)
            for at in range(0, end - begin, _BLOCK):
                part = slice(at, at + _BLOCK)
                if right is None:
                    measure.unchanged(left[part])
                else:
                    measure.compare(left[part], right[part])
    return measure


def _spans(old: TensorSpec, new: TensorSpec, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of elements, none over one chunk; exactly one chunk where elements end where chunks do."""
    elements = math.prod(old.shape)
    step = 8 * chunk_bytes // max(dtypes.nbytes(TensorSpec(spec.dtype, (8,))) for spec in (old, new)) or 1
    for begin in range(0, elements, step):
        yield begin, min(begin + step, elements)


def _aligned(spec: TensorSpec, reader: ChunkReader) -> bool:
    return 8 * reader.manifest.chunk_bytes % dtypes.nbytes(TensorSpec(spec.dtype, (8,))) == 0


def _chunk(reader: ChunkReader, index: int, number: int) -> str:
    return reader.manifest.tensors[index].shards[0].chunks[number].digest


def _read(reader: ChunkReader, index: int, dtype: str, begin: int, end: int) -> Array:
    first, last = (dtypes.nbytes(TensorSpec(dtype, (at,))) for at in (begin, end))
    wrapped: Array = registry.tensor_named("numpy").wrap(
        TensorSpec(dtype, (end - begin,)), reader.read_range(index, first, last)
    )
    return wrapped


def _differs(old: Array, new: Array) -> npt.NDArray[np.bool_]:
    """Element by element: by their bytes where the types are the same, else by value."""
    if old.dtype != new.dtype:
        one, two = _as_float(old), _as_float(new)
        if one is None or two is None:
            return np.ones(old.shape, np.bool_)
        return np.asarray(~((one == two) | (np.isnan(one) & np.isnan(two))))
    # As whole words: to compare them byte by byte takes ten times as long.
    word = next(size for size in (8, 4, 2, 1) if old.dtype.itemsize % size == 0)
    views = [np.ascontiguousarray(each).view(f"u{word}") for each in (old, new)]
    unequal = np.asarray(views[0] != views[1])
    if old.dtype.itemsize == word:
        return unequal
    return np.asarray(unequal.reshape(old.size, -1).any(axis=1))


def _squared(wide: Array) -> float:
    """The sum of the squares of all finite values."""
    # Not np.dot: BLAS would start threads for it, several in each of ours.
    total = float(np.square(wide.view(np.float64)).sum())  # of complex values both parts
    if math.isfinite(total):
        return total
    return float(np.square(wide[np.isfinite(wide)].view(np.float64)).sum())


def _gap(old: Array, new: Array, wide: Array | None) -> npt.NDArray[np.float64] | None:
    """The absolute difference of each pair; None for what is no number."""
    if old.dtype == new.dtype and old.dtype.kind in "iu" and old.dtype.itemsize == 8:
        # In float64 neighbours beyond 2**53 would look equal; modulo 2**64 larger minus smaller is exact.
        one, two = old.astype(np.uint64), new.astype(np.uint64)
        return np.asarray(np.where(old > new, one - two, two - one), np.float64)
    other = _as_float(new)
    if wide is None or other is None:
        return None
    return np.asarray(np.abs(other - wide), np.float64)


def _as_float(values: Array) -> Array | None:
    if values.dtype.kind in "Mm":
        values = values.view(np.int64)
    if values.dtype.kind in "SU":
        return None
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)
