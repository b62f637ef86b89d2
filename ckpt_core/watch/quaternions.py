"""Rotations as quaternions: are they of unit norm, finite, none of them zero, and how far have they turned?

Of rotations in Gaussian splatting, of poses, of crystal orientations: tensors whose last axis is 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import numpy as np

from ckpt_core.errors import UsageError
from ckpt_core.hooks import HookOptions
from ckpt_core.tree import dtypes
from ckpt_core.watch.earlier import EarlierTensor
from ckpt_core.watch.pieces import Array, as_floats, is_real, ranges
from ckpt_core.watch.watcher import Action, Sight, TensorWatcher, check_limit

__all__ = ["Order", "QuaternionCheck", "Quaternions", "measure_quaternions"]

Order = Literal["wxyz", "xyzw"]
Sign = Literal["any", "positive"]

_ZERO = 1e-12
"""A norm below which a quaternion is no rotation: to divide by it gives noise."""


@dataclass(frozen=True, slots=True)
class Quaternions:
    """What is known of a tensor of quaternions. `worst`: the largest distance of a norm from 1. Angles in degrees,
    between each rotation and itself in the checkpoint before; None where there is none of the same shape."""

    count: int
    violations: int
    not_finite: int
    zero: int
    off_norm: int
    negative: int
    worst: float
    drift_mean: float | None = None
    drift_max: float | None = None

    @property
    def share(self) -> float:
        """Violations among all."""
        return self.violations / self.count if self.count else 0.0


@np.errstate(over="ignore", invalid="ignore")
def measure_quaternions(
    values: Array,
    before: EarlierTensor | None = None,
    *,
    order: Order = "wxyz",
    tolerance: float | None = 1e-3,
    sign: Sign = "any",
) -> Quaternions:
    """Looks at `values[..., 4]`, a piece at a time.

    A violation is one that is not finite, or zero, or whose norm is further from 1 than `tolerance`, or whose w is
    negative where `sign` is `positive`. Without a tolerance any norm will do: for what is normalised when used.
    """
    flat = values.reshape(-1)
    counts = dict.fromkeys(("violations", "not_finite", "zero", "off_norm", "negative"), 0)
    scalar = 0 if order == "wxyz" else 3
    comparable = before is not None and before.shape == values.shape
    worst = turned = most = 0.0
    compared = 0
    for begin, end in ranges(flat.size, 4):
        parts = _parts(flat[begin:end])
        norms = _norms(parts)
        negative = parts[scalar] < 0
        finite = np.isfinite(norms)
        zero = norms < _ZERO
        distance = np.abs(norms - 1)
        bad = ~finite | zero
        counts["not_finite"] += int(np.count_nonzero(~finite))
        counts["zero"] += int(np.count_nonzero(zero))
        counts["negative"] += int(np.count_nonzero(negative))
        worst = max(worst, float(distance.max(initial=0.0, where=finite)))
        if tolerance is not None:
            off = distance > tolerance
            off &= ~bad
            counts["off_norm"] += int(np.count_nonzero(off))
            bad |= off
        counts["violations"] += int(np.count_nonzero(bad | negative if sign == "positive" else bad))
        if comparable:
            assert before is not None
            angles = _angles(parts, norms, before.values(begin, end))
            compared += angles.size
            turned += float(angles.sum(dtype=np.float64))
            most = max(most, float(angles.max(initial=0.0)))
    drift = (turned / compared, most) if compared else (None, None)
    return Quaternions(flat.size // 4, **counts, worst=worst, drift_mean=drift[0], drift_max=drift[1])


def _parts(piece: Array) -> Array:
    """(4, n): each part in a row of its own, over which arithmetic is several times as fast."""
    return np.ascontiguousarray(as_floats(piece).reshape(-1, 4).T)


def _norms(parts: Array) -> Array:
    squares = parts * parts
    norms: Array = np.sqrt(squares[0] + squares[1] + squares[2] + squares[3])
    return norms


def _angles(parts: Array, norms: Array, before: Array) -> Array:
    """Degrees between rotations: 4 atan2(|p - q|, |p + q|) of unit quaternions, with q's sign such that it is less
    than 180. Unlike the arc cosine of p·q it does not lose small angles. Those of no rotation are left out."""
    others = _parts(before)
    other_norms = _norms(others)
    sound = np.isfinite(norms) & np.isfinite(other_norms) & (norms >= _ZERO) & (other_norms >= _ZERO)
    if not sound.all():
        parts, others, norms, other_norms = (
            parts[:, sound],
            others[:, sound],
            norms[sound],
            other_norms[sound],
        )
    p, q = parts / norms, others / other_norms
    less, more = _norms(p - q), _norms(p + q)
    angles: Array = np.degrees(4 * np.arctan2(np.minimum(less, more), np.maximum(less, more)))
    return angles


class QuaternionCheck(TensorWatcher):
    """Checks the rotations of every state before it is written.

    `tensors`: paths, subtrees or shell patterns; of what they choose, those whose last axis is 4 are looked at, and
    a path that names a tensor of another shape is an error. `order`: scalar first (`wxyz`) or last (`xyzw`).
    `tolerance`: how far a norm may be from 1, or further where the dtype cannot do better; None for parameters that
    are normalised when they are used. `sign`: `positive` asks for w ≥ 0. `allowed`: the share of violations that
    is borne. `max_drift`: degrees that a rotation may turn from one checkpoint to the next. Raises UsageError.
    """

    topic = "quaternions"

    def __init__(
        self,
        tensors: str | Sequence[str],
        *,
        order: Order = "wxyz",
        tolerance: float | None = 1e-3,
        sign: Sign = "any",
        allowed: float = 0.0,
        max_drift: float | None = None,
        compare: bool = True,
        action: Action = "warn",
        **options: Unpack[HookOptions],
    ) -> None:
        super().__init__(tensors, action=action, compare=compare, **options)
        if order not in ("wxyz", "xyzw"):
            raise UsageError(f"order={order!r} must be 'wxyz' (scalar first) or 'xyzw' (last)", kind="option")
        if sign not in ("any", "positive"):
            raise UsageError(f"sign={sign!r} must be 'any' or 'positive'", kind="option")
        check_limit("tolerance", tolerance)
        check_limit("allowed", allowed, most=1)
        check_limit("max_drift", max_drift)
        self.order: Order = order
        self.tolerance = tolerance
        self.sign: Sign = sign
        self.allowed = allowed
        self.max_drift = max_drift

    def suits(self, path: str, values: Array) -> bool:
        fits = values.ndim > 0 and values.shape[-1] == 4 and is_real(values)
        if not fits and path in self._chosen.patterns:
            raise UsageError(
                f"{path} of shape {list(values.shape)} and dtype {values.dtype} holds no quaternions: they are "
                "floating-point numbers whose last axis is 4",
                kind="tensors",
                path=path,
            )
        return fits

    def examine(self, path: str, values: Array, before: EarlierTensor | None) -> Sight:
        tolerance = None if self.tolerance is None else max(self.tolerance, _resolution(values.dtype))
        found = measure_quaternions(values, before, order=self.order, tolerance=tolerance, sign=self.sign)
        metrics = {
            "violations": found.share,
            "not_finite": float(found.not_finite),
            "zero": float(found.zero),
            "worst": found.worst,
            "negative": found.negative / found.count if found.count else 0.0,
        }
        if found.drift_max is not None and found.drift_mean is not None:
            metrics |= {"drift_mean": found.drift_mean, "drift_max": found.drift_max}
        return Sight(metrics, tuple(self._complaints(found)), found)

    def _complaints(self, found: Quaternions) -> list[str]:
        complaints = []
        if found.share > self.allowed:
            kinds = {
                f"{found.off_norm} off unit norm (by {found.worst:.3g} at most)": found.off_norm,
                f"{found.zero} zero": found.zero,
                f"{found.not_finite} not finite": found.not_finite,
                f"{found.negative} with w < 0": found.negative if self.sign == "positive" else 0,
            }
            said = ", ".join(kind for kind, count in kinds.items() if count)
            complaints.append(f"{found.share:.3%} of {found.count} quaternions are no rotations: {said}")
        if self.max_drift is not None and found.drift_max is not None and found.drift_max > self.max_drift:
            complaints.append(
                f"a rotation turned {found.drift_max:.3g}° since the last checkpoint, over {self.max_drift:g}°"
            )
        return complaints


def _resolution(dtype: np.dtype[Any]) -> float:
    """How far from 1 the norm of a unit quaternion may be, if only because its parts are rounded."""
    return 2 * dtypes.resolution(dtype)
