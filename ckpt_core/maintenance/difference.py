"""What differs between two checkpoints: tensors by how much, plain values and metrics side by side.

Chunk digests tell equal tensors without reading them. Of a changed tensor the old one is read whole (its
norm is the measure), the new one only where a chunk differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ckpt_core.format.documents import Manifest
from ckpt_core.maintenance.leaves import plain_leaves, tensor_specs
from ckpt_core.maintenance.measuring import Measure, measure_all
from ckpt_core.model import TensorSpec
from ckpt_core.repository import Repository
from ckpt_core.tree import Selection

__all__ = ["ABSENT", "Difference", "TensorChange", "ValueChange", "difference"]

ABSENT: Any = object()
"""Stands for a value that one of the two checkpoints does not have."""

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
    measured = measure_all(repository, old, new, list(jobs), progress)
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


def _with(change: TensorChange, measure: Measure | None) -> TensorChange:
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
