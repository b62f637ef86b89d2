"""What watchers measure, piece by piece, is what the whole array says at once."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from ckpt_core.errors import UsageError
from ckpt_core.model import TensorSpec
from ckpt_core.tree import dtypes
from ckpt_core.watch import pieces
from ckpt_core.watch.earlier import EarlierTensor
from ckpt_core.watch.grids import GridMonitor, measure_grid
from ckpt_core.watch.health import measure_health
from ckpt_core.watch.quaternions import QuaternionCheck, measure_quaternions

DTYPES = [
    np.float32, np.float64, np.float16, ">f4", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
    np.complex64, np.complex128,
]  # fmt: skip


@pytest.fixture(params=[64, pieces.PIECE], ids=["small-pieces", "one-piece"])
def piece(request, monkeypatch):
    for module in ("pieces", "grids"):
        monkeypatch.setattr(f"ckpt_core.watch.{module}.PIECE", request.param)
    return request.param


def numbers(shape, dtype, seed=0):
    random = np.random.default_rng(seed)
    values = random.normal(size=shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * random.normal(size=shape)
    return values.astype(dtype)


def wide(values):
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def in_memory(values):
    """As the checkpoint before gives it."""
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    spec = TensorSpec(dtypes.name_of_numpy(values.dtype) or str(values.dtype), values.shape)
    return EarlierTensor(spec, lambda begin, end: data[begin:end])


@pytest.mark.parametrize(
    "dtype", [*DTYPES, ml_dtypes.complex32, ml_dtypes.bcomplex32, np.int32, ml_dtypes.int4]
)
def test_only_real_numbers_are_rotations_and_grids(dtype):
    values = np.zeros((2, 4), dtype)
    real = "float" in np.dtype(dtype).name
    assert pieces.is_numeric(values) is (real or "complex" in np.dtype(dtype).name)
    assert QuaternionCheck("*").suits("w", values) is real
    assert GridMonitor("*").suits("w", values) is real


@pytest.mark.parametrize("dtype", [ml_dtypes.complex32, ml_dtypes.bcomplex32, np.complex64])
def test_a_complex_number_is_two(dtype):
    values = np.array([1 + 2j, 3 - 4j], np.complex64).astype(dtype)
    assert pieces.as_floats(values).tolist() == [1, 2, 3, -4]


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 200])
@pytest.mark.parametrize("multiple", [1, 4, 10, 64, 100])
def test_pieces_cover_all_and_keep_groups_whole(piece, size, multiple):
    size = size // multiple * multiple
    found = list(pieces.ranges(size, multiple))
    assert [n for begin, end in found for n in range(begin, end)] == list(range(size))
    for begin, end in found:
        assert end - begin <= piece
        if multiple <= piece:
            assert begin % multiple == end % multiple == 0
        else:
            assert begin // multiple == (end - 1) // multiple


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_becomes_numbers_of_the_machine(dtype):
    values = numbers((50,), dtype)
    floats = pieces.as_floats(values)
    assert floats.dtype.isnative and floats.dtype in (np.float32, np.float64)
    assert np.array_equal(floats.astype(np.float64), wide(values).view(np.float64))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("units", ["first", "last"])
@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 11), (2, 300), (300, 2), (1, 129), (6,), ()])
def test_health_is_that_of_the_whole(piece, dtype, units, shape):
    values, before = numbers(shape, dtype), numbers(shape, dtype, seed=1)
    axis = 0 if units == "first" else -1
    if len(shape) > 1:
        np.moveaxis(values, axis, 0)[0] = 0
    found = measure_health(values, in_memory(before), units=units)
    exact, other = wide(values), wide(before)
    others = tuple(n for n in range(values.ndim) if n != axis % max(values.ndim, 1))
    assert found.values == values.size
    assert (found.nan, found.infinite) == (0, 0)
    assert math.isclose(found.squares, np.sum(np.abs(exact) ** 2), rel_tol=1e-5)
    assert found.units == (shape[axis] if len(shape) > 1 else 0)
    assert found.dead == (np.count_nonzero(~exact.any(axis=others)) if len(shape) > 1 else 0)
    assert math.isclose(found.update, np.sum(np.abs(exact - other) ** 2), rel_tol=1e-5)
    assert math.isclose(found.earlier, np.sum(np.abs(other) ** 2), rel_tol=1e-5)


@pytest.mark.parametrize("units", ["first", "last"])
def test_health_counts_what_is_not_finite_and_goes_on_with_the_rest(piece, units):
    values = numbers((40, 9), np.float32)
    values[3, 4], values[39, 8], values[0, 0] = np.nan, np.inf, -np.inf
    found = measure_health(values, units=units)
    assert (found.nan, found.infinite) == (1, 2)
    assert math.isclose(found.squares, np.sum(values[np.isfinite(values)].astype(float) ** 2), rel_tol=1e-5)
    assert found.dead == 0
    assert found.update is None


@pytest.mark.parametrize("units", ["first", "last"])
def test_large_and_tiny_values_are_neither_infinite_nor_dead(piece, units):
    huge = measure_health(np.full((8, 40), 1e30, np.float32), units=units)
    assert (huge.nan, huge.infinite) == (0, 0)
    assert math.isclose(math.sqrt(huge.squares), 1e30 * math.sqrt(320), rel_tol=1e-5)
    tiny = np.full((8, 40), 1e-30, np.float32)  # the square is 0
    tiny[2], tiny[:, 5] = 0, 0
    assert measure_health(tiny, units=units).dead == 1


def test_another_shape_before_is_nothing_to_compare_with():
    before = in_memory(numbers((3, 4), np.float32))
    values = numbers((4, 4), np.float32)
    assert measure_health(values, before).update is None
    assert measure_quaternions(values, before).drift_max is None
    found = measure_grid(values, before)
    assert (found.dead, found.change, found.earlier) == (None, None, (3, 4))


def unit(count, seed=0):
    q = np.random.default_rng(seed).normal(size=(count, 4))
    return q / np.linalg.norm(q, axis=1, keepdims=True)


@pytest.mark.parametrize("order", ["wxyz", "xyzw"])
def test_each_kind_of_violation_is_told(piece, order):
    q = unit(300).astype(np.float32)
    w = 0 if order == "wxyz" else 3
    q[:, w] = np.abs(q[:, w])
    q[10], q[11] = 0, [np.nan, 0, 0, 1]
    q[12] *= 1.5
    q[13] *= -1
    q[14] = [np.inf, 0, 0, 0]
    found = measure_quaternions(q, order=order)
    assert (found.count, found.zero, found.not_finite, found.off_norm) == (300, 1, 2, 1)
    assert (found.violations, found.negative) == (4, 1)
    assert math.isclose(found.worst, 1.0, rel_tol=1e-6)  # that of the zero
    assert measure_quaternions(q, order=order, sign="positive").violations == 5
    assert measure_quaternions(q, order=order, tolerance=None).violations == 3


@pytest.mark.parametrize("degrees", [0.0, 0.001, 1.0, 45.0, 179.0, 180.0])
def test_drift_is_the_angle_between_rotations(piece, degrees):
    before, axis = unit(200), unit(1, seed=3)[0, :3]
    axis /= np.linalg.norm(axis)
    half = math.radians(degrees) / 2
    turn = np.array([math.cos(half), *(math.sin(half) * axis)])
    values = product(turn, before)
    values[::2] *= -1  # the same rotation
    values *= 3.0  # what is not normalised is the same rotation, too
    for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 2e-5)):
        found = measure_quaternions(values.astype(dtype), in_memory(before.astype(dtype)), tolerance=None)
        assert math.isclose(found.drift_max, degrees, rel_tol=1e-4, abs_tol=tolerance)
        assert math.isclose(found.drift_mean, degrees, rel_tol=1e-4, abs_tol=tolerance)


def product(p, q):
    """Hamilton's, scalar first."""
    a, u, b, v = p[0], p[1:], q[:, :1], q[:, 1:]
    return np.concatenate(
        [a * b - (v @ u)[:, None], a * v + b * u + np.cross(np.broadcast_to(u, v.shape), v)], axis=1
    )


def test_what_is_no_rotation_has_no_drift(piece):
    before, values = unit(100), unit(100)
    before[3], values[7], values[8] = 0, np.nan, 0
    found = measure_quaternions(values, in_memory(before))
    assert found.drift_max < 1e-6
    nothing = measure_quaternions(np.zeros((5, 4)), in_memory(np.zeros((5, 4))))
    assert (nothing.drift_max, nothing.zero) == (None, 5)
    assert measure_quaternions(np.zeros((0, 4), np.float32)).share == 0.0


GRIDS = [
    ((6, 5, 7), None),
    ((3, 6, 5, 7), (1, 2, 3)),
    ((6, 5, 7, 3), (0, 1, 2)),
    ((2, 6, 5, 4), (1, 2)),
    ((2, 3, 90), (-1,)),
    ((90, 2), (0,)),
    ((1, 1, 1), None),
    ((70, 70), (0, 1)),
]


@pytest.mark.parametrize("dtype", DTYPES[:7], ids=str)
@pytest.mark.parametrize(("shape", "axes"), GRIDS)
def test_a_grid_is_that_of_the_whole(piece, dtype, shape, axes):
    values, before = numbers(shape, dtype), numbers(shape, dtype)
    np.copyto(before, numbers(shape, dtype, seed=1), where=np.random.default_rng(2).random(shape) < 0.2)
    found = measure_grid(values, in_memory(before), axes=axes, occupied_above=1.0)
    exact, other = wide(values), wide(before)
    spatial = tuple(range(len(shape))) if axes is None else tuple(axis % len(shape) for axis in axes)
    channels = tuple(axis for axis in range(len(shape)) if axis not in spatial)
    cells = math.prod(shape[axis] for axis in spatial)
    assert found.resolution == tuple(shape[axis] for axis in spatial)
    assert (found.cells, found.bad) == (cells, 0)
    assert found.occupied == np.count_nonzero((np.abs(exact) > 1).any(axis=channels))
    assert found.dead == np.count_nonzero((exact == other).all(axis=channels))
    assert (found.least, found.greatest) == (exact.min(), exact.max())
    energy = sum(np.sum(np.diff(exact, axis=axis) ** 2) for axis in spatial) / cells
    assert math.isclose(found.gradient, energy, rel_tol=1e-5, abs_tol=1e-12)
    change = np.linalg.norm((exact - other).ravel()) / np.linalg.norm(other.ravel())
    assert math.isclose(found.change, change, rel_tol=1e-5, abs_tol=1e-12)
    assert found.earlier is None


def test_cells_that_are_not_finite_are_counted_and_left_out(piece):
    values = numbers((3, 10, 10), np.float32)
    values[0, 4, 4], values[2, 4, 4:6], values[1, 0, 0] = np.nan, np.inf, -np.inf
    found = measure_grid(values, axes=(1, 2))
    assert (found.bad, found.cells) == (3, 100)
    kept = values[np.isfinite(values)]
    assert (found.least, found.greatest) == (kept.min(), kept.max())
    with np.errstate(invalid="ignore"):
        differences = np.concatenate([np.diff(values, axis=axis).ravel() for axis in (1, 2)])
    energy = np.sum(differences[np.isfinite(differences)].astype(float) ** 2) / 100
    assert math.isclose(found.gradient, energy, rel_tol=1e-5)
    nothing = measure_grid(np.full((4, 4), np.nan, np.float32))
    assert math.isnan(nothing.least) and math.isnan(nothing.greatest)
    assert nothing.gradient == 0.0


def test_an_empty_grid_is_one_of_no_cells(piece):
    found = measure_grid(np.zeros((0, 4), np.float32))
    assert (found.cells, found.occupied, found.gradient) == (0, 0, 0.0)


@pytest.mark.parametrize("axes", [(3,), (-4,)])
def test_axes_that_a_tensor_has_not_are_refused(axes):
    with pytest.raises(UsageError, match="axes of a tensor that has 3"):
        measure_grid(np.zeros((2, 2, 2), np.float32), axes=axes)
