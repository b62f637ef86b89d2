"""The copy of a state that lets training go on, and the memory it is made in."""

from __future__ import annotations

import numpy as np
import pytest

from ckpt_core.pipeline import staging
from ckpt_core.tree import flatten, registry


def flat(state):
    return flatten(state, registry)


def test_a_copy_does_not_change_with_the_live_tensors() -> None:
    live = np.arange(6, dtype=np.float32).reshape(2, 3)
    snapshot = staging.copy(flat({"w": live}), staging.Arena())
    live[:] = -1
    assert snapshot.tensors[0].data.tobytes() == np.arange(6, dtype=np.float32).tobytes()
    assert snapshot.nbytes == 24


def test_a_borrowed_tensor_is_the_live_one() -> None:
    live = np.arange(6, dtype=np.float32)
    snapshot = staging.borrow(flat({"w": live}))
    live[:] = 7
    assert snapshot.tensors[0].data.view(np.float32).tolist() == [7.0] * 6


@pytest.mark.parametrize("stage", [staging.borrow, lambda f: staging.copy(f, staging.Arena())])
def test_what_is_not_contiguous_comes_in_c_order(stage) -> None:
    live = np.arange(12, dtype=np.int16).reshape(3, 4).T
    snapshot = stage(flat({"t": live}))
    assert snapshot.tensors[0].data.tobytes() == np.ascontiguousarray(live).tobytes()
    assert snapshot.tensors[0].spec.shape == (4, 3)


@pytest.mark.parametrize("stage", [staging.borrow, lambda f: staging.copy(f, staging.Arena())])
def test_empty_and_scalar_tensors(stage) -> None:
    snapshot = stage(flat({"e": np.empty((0, 3)), "s": np.array(2.5)}))
    assert [tensor.data.nbytes for tensor in snapshot.tensors] == [0, 8]
    assert snapshot.tensors[1].data.view(np.float64)[0] == 2.5


def test_tensors_start_aligned_and_do_not_overlap() -> None:
    arrays = {str(i): np.full(size, i, np.uint8) for i, size in enumerate([1, 5000, 63, 64, 4096, 3])}
    snapshot = staging.copy(flat(arrays), staging.Arena())
    for tensor, array in zip(snapshot.tensors, arrays.values(), strict=True):
        address = tensor.data.__array_interface__["data"][0]
        assert address % (4096 if array.nbytes >= 4096 else 64) == 0
        assert tensor.data.tobytes() == array.tobytes()


def test_an_arena_is_used_again_and_grows() -> None:
    arena = staging.Arena()
    small = arena.take(100)
    assert arena.take(50).__array_interface__["data"] == small.__array_interface__["data"]
    large = arena.take(1 << 20)
    assert large.nbytes == 1 << 20
    assert large.__array_interface__["data"][0] % 4096 == 0
    assert arena.take(100).__array_interface__["data"][0] == large.__array_interface__["data"][0]


def test_a_pool_makes_as_many_arenas_as_are_in_use_at_once() -> None:
    pool = staging.ArenaPool()
    first, second = pool.acquire(), pool.acquire()
    assert first is not second
    pool.release(first)
    assert pool.acquire() is first
    pool.release(first)
    pool.release(second)
    pool.clear()
    assert pool.acquire() not in (first, second)
