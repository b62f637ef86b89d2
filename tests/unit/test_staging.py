"""The copy of a state that lets training go on, and the memory it is made in."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ckpt_core.pipeline import staging
from ckpt_core.tree import CodecRegistry, borrow, flatten, register_builtin, registry
from ckpt_core.tree.builtin import NumpyCodec


def flat(state):
    return flatten(state, registry)


def test_a_copy_does_not_change_with_the_live_tensors() -> None:
    live = np.arange(6, dtype=np.float32).reshape(2, 3)
    snapshot, _ = staging.copy(flat({"w": live}), staging.Arena())
    live[:] = -1
    assert snapshot.tensors[0].data.tobytes() == np.arange(6, dtype=np.float32).tobytes()
    assert snapshot.nbytes == 24


def test_what_a_codec_can_hold_on_to_is_not_copied() -> None:
    class Frozen(np.ndarray):
        """Nobody writes to it."""

    class Codec(NumpyCodec):
        name = "frozen"

        def hold(self, value):
            return self.view(value) if value.ndim == 1 else None

    codecs = CodecRegistry()
    register_builtin(codecs)
    codecs.add_tensor(Codec(), Frozen)
    one, two, three = np.arange(6.0), np.eye(2), np.ones(3)
    snapshot, _ = staging.copy(
        flatten({"a": one.view(Frozen), "b": two.view(Frozen), "c": three}, codecs), staging.Arena()
    )
    held = [
        np.shares_memory(tensor.data, live)
        for tensor, live in zip(snapshot.tensors, (one, two, three), strict=True)
    ]
    assert held == [True, False, False]
    assert [tensor.data.tobytes() for tensor in snapshot.tensors] == [
        each.tobytes() for each in (one, two, three)
    ]


def test_a_borrowed_tensor_is_the_live_one() -> None:
    live = np.arange(6, dtype=np.float32)
    snapshot = borrow(flat({"w": live}))
    live[:] = 7
    assert snapshot.tensors[0].data.view(np.float32).tolist() == [7.0] * 6


@pytest.mark.parametrize("stage", [borrow, lambda f: staging.copy(f, staging.Arena())[0]])
def test_what_is_not_contiguous_comes_in_c_order(stage) -> None:
    live = np.arange(12, dtype=np.int16).reshape(3, 4).T
    snapshot = stage(flat({"t": live}))
    assert snapshot.tensors[0].data.tobytes() == np.ascontiguousarray(live).tobytes()
    assert snapshot.tensors[0].spec.shape == (4, 3)


@pytest.mark.parametrize("stage", [borrow, lambda f: staging.copy(f, staging.Arena())[0]])
def test_empty_and_scalar_tensors(stage) -> None:
    snapshot = stage(flat({"e": np.empty((0, 3)), "s": np.array(2.5)}))
    assert [tensor.data.nbytes for tensor in snapshot.tensors] == [0, 8]
    assert snapshot.tensors[1].data.view(np.float64)[0] == 2.5


def test_tensors_lie_as_in_a_pack_each_where_its_dtype_may_begin() -> None:
    dtypes = [np.uint8, np.float32, np.uint8, np.float64, np.int16, np.float32]
    arrays = {
        str(i): np.full(size, i, dtype)
        for i, (size, dtype) in enumerate(zip([1, 5000, 63, 64, 7, 3], dtypes, strict=True))
    }
    snapshot, _ = staging.copy(flat(arrays), staging.Arena())
    places = []
    for tensor, array in zip(snapshot.tensors, arrays.values(), strict=True):
        address = tensor.data.__array_interface__["data"][0]
        assert address % array.itemsize == 0
        assert tensor.data.tobytes() == array.tobytes()
        places.append((address, address + array.nbytes))
    places.sort()
    assert places[0][0] % 4096 == 0
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(places))


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
