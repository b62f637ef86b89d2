"""Every kind of JAX array, and random keys, out and back through the engine, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ckpt_core import CheckpointManager, StateError, StateMismatchError
from ckpt_jax.codec import JaxCodec

SMALL = ("int2", "int4", "uint2", "uint4", "float4_e2m1fn")
FLOATS = (
    "bfloat16", "float16", "float32", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn",
    "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
)  # fmt: skip
PLAIN = ("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "complex64")
WIDE = ("int64", "uint64", "float64", "complex128")


def bits(array: Any) -> bytes:
    return np.asarray(array).tobytes()


def filled(name: str, shape: tuple[int, ...]) -> jax.Array:
    """Arbitrary bits of a dtype: NaNs with payloads, negative zeros, infinities among them."""
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    count = int(np.prod(shape))
    if name in SMALL or name == "bool":
        numbers = np.random.default_rng(7).integers(0, 2 if name == "bool" or "2" in name[-2:] else 8, count)
        host = (numbers - (name in ("int2", "int4"))).astype(dtype)
    else:
        host = np.random.default_rng(7).bytes(count * dtype.itemsize)
        host = np.frombuffer(host, dtype)
    with jax.enable_x64(name in WIDE):
        return jnp.asarray(host.reshape(shape))


@pytest.mark.parametrize("name", [*PLAIN, *FLOATS, *SMALL, *WIDE])
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7)], ids=str)
def test_dtypes(manager: CheckpointManager, name: str, shape: tuple[int, ...]) -> None:
    array = filled(name, shape)
    manager.save({"x": array}, step=1, wait=True)

    loaded = manager.load()["x"]

    assert isinstance(loaded, jax.Array)
    assert (loaded.dtype, loaded.shape, bits(loaded)) == (array.dtype, array.shape, bits(array))


@pytest.mark.parametrize(
    "array",
    [np.array(["2026-01-31", "NaT"], "datetime64[s]"), np.ones(3, ml_dtypes.float6_e2m3fn)],
    ids=["dates", "float6"],
)
def test_a_dtype_that_jax_lacks_is_refused_and_loads_as_numpy(manager: CheckpointManager, array: Any) -> None:
    manager.save({"x": array}, step=1, wait=True)
    with pytest.raises(StateMismatchError, match='framework="numpy"'):
        manager.load(framework="jax")
    assert manager.load()["x"].dtype == array.dtype


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_random_keys_keep_their_implementation(manager: CheckpointManager, implementation: str) -> None:
    key = jax.random.key(5, impl=implementation)
    keys = jax.random.split(key, 6).reshape(2, 3)
    manager.save({"key": key, "keys": keys}, step=1, wait=True)

    loaded = manager.load()

    for name, old in (("key", key), ("keys", keys)):
        new = loaded[name]
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        assert bits(jax.random.key_data(new)) == bits(jax.random.key_data(old))
    assert bits(jax.random.normal(loaded["key"], 3)) == bits(jax.random.normal(key, 3))


def test_an_old_style_key_stays_what_it_is(manager: CheckpointManager) -> None:
    manager.save({"key": jax.random.PRNGKey(5)}, step=1, wait=True)
    loaded = manager.load()["key"]
    assert loaded.dtype == jnp.uint32
    assert bits(loaded) == bits(jax.random.PRNGKey(5))


def test_tied_arrays_are_stored_once(manager: CheckpointManager) -> None:
    array = jnp.arange(1000.0)
    checkpoint = manager.save({"a": array, "b": array}, step=1, wait=True).result()
    assert checkpoint.logical_bytes == 4000
    loaded = manager.load()
    assert loaded["a"] is loaded["b"]


@pytest.fixture
def reusing() -> Iterator[Any]:
    """A jitted function that takes the buffer of its argument for its result."""
    return jax.jit(lambda x: x + 1, donate_argnums=0)


def test_a_staged_array_may_be_donated_at_once(manager: CheckpointManager, reusing: Any) -> None:
    array = jnp.arange(100_000.0)
    handle = manager.save({"x": array}, step=1)
    reusing(array).block_until_ready()
    assert array.is_deleted()  # staging left nothing behind that keeps the buffer from being reused
    handle.result()
    assert bits(manager.load()["x"]) == bits(np.arange(100_000, dtype=np.float32))


def test_a_view_keeps_a_donated_buffer_alive(reusing: Any) -> None:
    array = jnp.arange(100_000.0)
    view = JaxCodec().view(array)
    assert view is not None
    assert view.__array_interface__["data"][0] == array.unsafe_buffer_pointer()
    result = reusing(array)
    assert bits(view) == bits(np.arange(100_000, dtype=np.float32))
    assert bits(result) == bits(np.arange(1, 100_001, dtype=np.float32))


def test_a_donated_array_cannot_be_saved(manager: CheckpointManager, reusing: Any) -> None:
    array = jnp.arange(3.0)
    reusing(array)
    with pytest.raises(StateError, match="donate_argnums") as caught:
        manager.save({"params": [array]}, step=1)
    assert caught.value.path == "params/0"


def test_a_traced_array_cannot_be_saved(manager: CheckpointManager) -> None:
    with pytest.raises(StateError, match="outside of jit"):
        jax.jit(lambda x: manager.save({"x": x}, step=1))(jnp.ones(3))


def test_a_struct_has_no_values_to_save(manager: CheckpointManager) -> None:
    with pytest.raises(StateError, match="like="):
        manager.save({"x": jax.ShapeDtypeStruct((3,), jnp.float32)}, step=1)


class TestLike:
    def test_dtype_is_that_of_like(self, manager: CheckpointManager) -> None:
        manager.save({"x": jnp.arange(4.0) / 3}, step=1, wait=True)
        loaded = manager.load(like={"x": jnp.zeros(4, jnp.bfloat16)})["x"]
        assert loaded.dtype == jnp.bfloat16
        assert bits(loaded) == bits((jnp.arange(4.0) / 3).astype(jnp.bfloat16))

    def test_integers_that_do_not_fit_are_refused(self, manager: CheckpointManager) -> None:
        manager.save({"x": jnp.array([1, 300])}, step=1, wait=True)
        with pytest.raises(StateMismatchError, match="x: its values do not fit in uint8"):
            manager.load(like={"x": jnp.zeros(2, jnp.uint8)})

    def test_an_uncommitted_array_stays_uncommitted(self, manager: CheckpointManager) -> None:
        """One that is pinned to a device cannot be used together with arrays on all of them."""
        manager.save({"x": jnp.arange(3)}, step=1, wait=True)
        pinned = jax.device_put(jnp.zeros(3, int), jax.devices()[3])
        assert not manager.load(like={"x": jnp.zeros(3, int)})["x"].committed
        loaded = manager.load(like={"x": pinned})["x"]
        assert loaded.committed
        assert loaded.devices() == {jax.devices()[3]}

    def test_from_another_framework(self, manager: CheckpointManager) -> None:
        manager.save({"x": np.arange(6, dtype=">f4").reshape(2, 3)}, step=1, wait=True)
        loaded = manager.load(framework="jax")["x"]
        assert isinstance(loaded, jax.Array)
        assert bits(loaded) == bits(np.arange(6, dtype=np.float32))


def test_wide_numbers_survive_where_jax_is_set_to_narrow_ones(manager: CheckpointManager) -> None:
    manager.save({"x": np.array([1 / 3, 1e300])}, step=1, wait=True)
    assert not jax.config.jax_enable_x64
    loaded = manager.load(framework="jax")["x"]
    assert loaded.dtype == jnp.float64
    assert bits(loaded) == bits(np.array([1 / 3, 1e300]))
