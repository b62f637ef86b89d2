"""What differs between two checkpoints: tensors by how much, plain values and metrics side by side.

Chunk digests tell equal tensors without reading them. Of a changed tensor the old one is read whole (its
norm is the measure), the new one only where a chunk differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ckpt_core.format.documents import Manifest
from ckpt_core.maintenance.leaves import plain_leaves, tensor_specs
from ckpt_core.model import TensorSpec
from ckpt_core.repository import ChunkReader, Repository
from ckpt_core.tree import Selection, dtypes, registry

__all__ = ["ABSENT", "Difference", "TensorChange", "ValueChange", "difference"]

_BLOCK = 1 << 17  # elements compared at once: what fits a processor's cache
_THREADS = 4
ABSENT: Any = object()
"""Stands for a value that one of the two checkpoints does not have."""

Array = npt.NDArray[Any]
Change = Literal["added", "removed", "changed", "retyped", "reshaped"]


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor that is not the same. The measures are None where they have no meaning.

    `changed`: elements whose bytes differ. `max_abs`: the largest absolute difference. `relative_l2`: the
    norm of the difference over that of the old tensor. Pairs in which a value is not finite count in
    `not_finite` and in no measure.
    """

    path: str
    change: Change
    old: TensorSpec | None
    new: TensorSpec | None
    elements: int = 0
    changed: int | None = None
    max_abs: float | None = None
    relative_l2: float | None = None
    not_finite: int = 0

    @property
    def share(self) -> float | None:
        """Which part of the elements changed."""
        return None if self.changed is None or not self.elements else self.changed / self.elements


@dataclass(frozen=True, slots=True)
class ValueChange:
    """A plain value that is not the same; `ABSENT` where one side has none."""

    path: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class Difference:
    """Everything that differs, in the order of the state."""

    tensors: tuple[TensorChange, ...]
    values: tuple[ValueChange, ...]
    metrics: tuple[ValueChange, ...]
    same_tensors: int
    same_values: int

    @property
    def same_state(self) -> bool:
        """Whether the two states are equal to the last bit. Metrics are no part of a state."""
        return not (self.tensors or self.values)


def difference(
    repository: Repository,
    old: Manifest,
    new: Manifest,
    *,
    include: str | tuple[str, ...] | None = None,
    measure: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Difference:
    """Compares two checkpoints. Without `measure` no tensor is read. `progress` hears of bytes.

    Raises CorruptionError where a tensor that must be read is damaged.
    """
    selection = Selection(include)
    before = {path: found for path, found in tensor_specs(old).items() if path in selection}
    after = {path: found for path, found in tensor_specs(new).items() if path in selection}
    changes: list[TensorChange] = []
    jobs: dict[tuple[int, int], None] = {}
    for path in [*before, *(path for path in after if path not in before)]:
        change = _kind(old, new, before.get(path), after.get(path))
        if change is None:
            continue
        changes.append(change_of(path, change, before.get(path), after.get(path)))
        if measure and change in ("changed", "retyped"):
            jobs[before[path][0], after[path][0]] = None
    measured = _measure_all(repository, old, new, list(jobs), progress)
    changes = [
        _with(change, measured.get((before[change.path][0], after[change.path][0])))
        if change.change in ("changed", "retyped")
        else change
        for change in changes
    ]
    values, same_values = _compare_values(_values(old, selection), _values(new, selection))
    metrics, _ = _compare_values(dict(old.metrics), dict(new.metrics))
    return Difference(
        tuple(changes), values, metrics, len(before.keys() | after.keys()) - len(changes), same_values
    )


def change_of(
    path: str, change: Change, old: tuple[int, TensorSpec] | None, new: tuple[int, TensorSpec] | None
) -> TensorChange:
    """A change that is not measured yet."""
    known = new or old
    assert known is not None
    return TensorChange(path, change, old and old[1], new and new[1], math.prod(known[1].shape))


def _kind(
    old: Manifest, new: Manifest, before: tuple[int, TensorSpec] | None, after: tuple[int, TensorSpec] | None
) -> Change | None:
    if before is None or after is None:
        return "added" if before is None else "removed"
    if before[1].shape != after[1].shape:
        return "reshaped"
    if before[1].dtype != after[1].dtype:
        return "retyped"
    one = [chunk.digest for chunk in old.tensors[before[0]].shards[0].chunks]
    two = [chunk.digest for chunk in new.tensors[after[0]].shards[0].chunks]
    return None if one == two and old.chunk_bytes == new.chunk_bytes else "changed"


def _values(manifest: Manifest, selection: Selection) -> dict[str, Any]:
    return {path: value for path, value in plain_leaves(manifest.state) if path in selection}


def _compare_values(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[tuple[ValueChange, ...], int]:
    paths = [*old, *(path for path in new if path not in old)]
    changes = [
        ValueChange(path, old.get(path, ABSENT), new.get(path, ABSENT))
        for path in paths
        if not _same(old.get(path, ABSENT), new.get(path, ABSENT))
    ]
    return tuple(changes), len(paths) - len(changes)


def _same(old: Any, new: Any) -> bool:
    if type(old) is not type(new):
        return False
    if isinstance(old, float) and math.isnan(old) and math.isnan(new):
        return True
    return bool(old == new)


# -- how much a tensor changed --------------------------------------------------------------------


@dataclass(slots=True)
class _Measure:
    """Sums over the elements of one tensor, block by block."""

    changed: int = 0
    not_finite: int = 0
    max_abs: float | None = None
    squares: float = 0.0
    norm: float = 0.0
    numeric: bool = True

    def unchanged(self, old: Array) -> None:
        """A block that both sides have in common: only the norm of the old is of interest."""
        self._add_norm(_as_float(old))

    def compare(self, old: Array, new: Array) -> None:
        """A block that may differ."""
        differs = _differs(old, new)
        self.changed += int(np.count_nonzero(differs))
        wide = _as_float(old)
        self._add_norm(wide)
        gap = _gap(old, new, wide)
        if gap is None:
            self.numeric = False
            return
        finite = np.isfinite(gap)
        self.not_finite += int(np.count_nonzero(differs & ~finite))
        gap = gap[finite]
        if gap.size:
            self.max_abs = max(self.max_abs or 0.0, float(gap.max()))
            self.squares += float(np.dot(gap, gap))

    def _add_norm(self, wide: Array | None) -> None:
        if wide is not None:
            sizes = np.abs(wide[np.isfinite(wide)])
            self.norm += float(np.dot(sizes, sizes))

    @property
    def relative(self) -> float | None:
        """The norm of the difference over that of the old tensor."""
        if not self.numeric or self.max_abs is None:
            return None
        if not self.norm:
            return math.inf if self.squares else 0.0
        return math.sqrt(self.squares) / math.sqrt(self.norm)


def _with(change: TensorChange, measure: _Measure | None) -> TensorChange:
    if measure is None:
        return change
    return TensorChange(
        change.path,
        change.change,
        change.old,
        change.new,
        change.elements,
        measure.changed,
        measure.max_abs if measure.numeric else None,
        measure.relative,
        measure.not_finite,
    )


def _measure_all(
    repository: Repository,
    old: Manifest,
    new: Manifest,
    jobs: list[tuple[int, int]],
    progress: Callable[[int, int], None] | None,
) -> dict[tuple[int, int], _Measure]:
    sizes = [dtypes.nbytes(TensorSpec(old.tensors[a].dtype, old.tensors[a].shape)) for a, _ in jobs]
    before, after = repository.reader(old, "lazy"), repository.reader(new, "lazy")
    measured: dict[tuple[int, int], _Measure] = {}
    done = 0
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ckpt-diff")
    try:
        results = pool.map(lambda job: _measure(before, after, *job), jobs)
        for job, size, measure in zip(jobs, sizes, results, strict=True):
            measured[job] = measure
            done += size
            if progress is not None:
                progress(done, sum(sizes))
    finally:
        pool.shutdown(cancel_futures=True)
        before.close()
        after.close()
    return measured


def _measure(before: ChunkReader, after: ChunkReader, one: int, two: int) -> _Measure:
    measure = _Measure()
    old, new = before.spec(one), after.spec(two)
    equal = old == new and before.manifest.chunk_bytes == after.manifest.chunk_bytes
    with np.errstate(all="ignore"):
        for begin, end in _spans(old, new, before.manifest.chunk_bytes):
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
    step = 8 * chunk_bytes // max(dtypes.nbytes(TensorSpec(spec.dtype, (8,))) for spec in (old, new))
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
    rows = [np.ascontiguousarray(each).view(np.uint8).reshape(each.size, -1) for each in (old, new)]
    return np.asarray((rows[0] != rows[1]).any(axis=1))


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
