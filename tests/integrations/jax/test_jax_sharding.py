"""Sharded arrays saved under one mesh and loaded under another, and what of them is read for it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ckpt_core import CheckpointManager, StateMismatchError
from ckpt_core.pipeline.opened import LazyTensor
from ckpt_jax import load
from ckpt_jax.codec import JaxCodec

HOST = np.random.default_rng(1).normal(size=(64, 48)).astype(np.float32)
SPECS = [
    P(),
    P("rows"),
    P(None, "columns"),
    P("columns", "rows"),
    P(("rows", "columns")),
    P(None, ("columns", "rows")),
]


def on(mesh: Mesh, spec: Any, host: np.ndarray = HOST) -> jax.Array:
    return jax.device_put(host, NamedSharding(mesh, spec))


@pytest.mark.parametrize("before", SPECS, ids=str)
@pytest.mark.parametrize("after", SPECS, ids=str)
def test_one_mesh_to_another(
    manager: CheckpointManager, mesh_4x2: Mesh, mesh_2x4: Mesh, before: Any, after: Any
) -> None:
    state = {"w": on(mesh_4x2, before), "b": jnp.arange(5), "half": on(mesh_4x2, before).astype(jnp.bfloat16)}
    manager.save({"state": state}, step=1).result()
    sharding = NamedSharding(mesh_2x4, after)
    like = {
        "w": jax.ShapeDtypeStruct((64, 48), jnp.float32, sharding=sharding),
        "b": jnp.zeros(5, int),
        "half": jax.device_put(jnp.zeros((64, 48), jnp.bfloat16), sharding),
    }
    for loaded in (load(manager, like=like), manager.load(like={"state": like})["state"]):
        assert loaded["w"].sharding == loaded["half"].sharding == sharding
        np.testing.assert_array_equal(np.asarray(loaded["w"]), HOST)
        assert np.asarray(loaded["half"]).tobytes() == np.asarray(state["half"]).tobytes()
        assert not loaded["b"].committed


def test_what_is_saved_does_not_depend_on_the_mesh(
    manager: CheckpointManager, mesh_4x2: Mesh, mesh_2x4: Mesh
) -> None:
    manager.save({"w": jnp.asarray(HOST)}, step=1, wait=True)
    for step, array in enumerate((on(mesh_4x2, P("rows", "columns")), on(mesh_2x4, P(None, "columns"))), 2):
        checkpoint = manager.save({"w": array}, step=step).result()
        assert checkpoint.written_bytes == 0, "the same values are the same chunks"


def test_shards_are_copied_straight_to_their_place(mesh_4x2: Mesh) -> None:
    """Without the whole array being put together anywhere else."""
    array = on(mesh_4x2, P("columns", "rows"))
    codec, out = JaxCodec(), np.empty(HOST.nbytes, np.uint8)
    codec.copy_into(array, out)
    assert out.tobytes() == HOST.tobytes()
    assert codec.view(array) is None
    assert not hasattr(array, "_npy_value") or array._npy_value is None
    view = codec.view(on(mesh_4x2, P()))
    assert view is not None, "one device has all of it"


class Counted:
    """Bytes of stored tensors that were asked for, and the longest reading."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.readings: list[int] = []
        original = LazyTensor.__getitem__

        def counting(tensor: LazyTensor, key: Any) -> Any:
            part = original(tensor, key)
            self.readings.append(part.nbytes)
            return part

        monkeypatch.setattr(LazyTensor, "__getitem__", counting)


@pytest.mark.parametrize(
    ("spec", "readings"),
    [
        (P("rows"), [HOST.nbytes // 4] * 4),
        (P("rows", "columns"), [HOST.nbytes // 4] * 4),
        (P(), [HOST.nbytes]),
    ],
    ids=str,
)
def test_each_part_is_read_once_and_no_more_at_a_time(
    manager: CheckpointManager,
    mesh_4x2: Mesh,
    monkeypatch: pytest.MonkeyPatch,
    spec: Any,
    readings: list[int],
) -> None:
    manager.save({"state": on(mesh_4x2, P("columns"))}, step=1, wait=True)
    counted = Counted(monkeypatch)
    load(manager, like=on(mesh_4x2, spec, np.zeros_like(HOST)))
    assert counted.readings == readings


def test_random_keys_are_sharded_too(manager: CheckpointManager, mesh_4x2: Mesh, mesh_2x4: Mesh) -> None:
    keys = jax.random.split(jax.random.key(3), 8)
    manager.save({"state": jax.device_put(keys, NamedSharding(mesh_4x2, P("rows")))}, step=1).result()
    like = jax.device_put(jax.random.split(jax.random.key(0), 8), NamedSharding(mesh_2x4, P("columns")))
    loaded = load(manager, like=like)
    assert loaded.sharding == like.sharding
    assert (jax.random.key_data(loaded) == jax.random.key_data(keys)).all()


def test_a_computation_goes_on_under_another_mesh(
    manager: CheckpointManager, mesh_4x2: Mesh, mesh_2x4: Mesh
) -> None:
    """A counter that no device owns is used together with sharded parameters."""
    state = {"w": on(mesh_4x2, P("rows")), "count": jnp.asarray(3)}
    manager.save({"state": state}, step=1).result()
    loaded = load(manager, like={"w": on(mesh_2x4, P("columns")), "count": jnp.asarray(0)})
    result = jax.jit(lambda s: s["w"] * s["count"])(loaded)
    assert result.sharding.spec == P("columns")
    np.testing.assert_array_equal(np.asarray(result), HOST * 3)


def test_another_shape_is_refused_before_anything_is_read(
    manager: CheckpointManager, mesh_4x2: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.save({"state": {"w": on(mesh_4x2, P("rows"))}}, step=1).result()
    counted = Counted(monkeypatch)
    with pytest.raises(
        StateMismatchError, match=r"state/w: saved with shape \[64, 48\], like= has \[48, 64\]"
    ):
        load(manager, like={"w": jnp.zeros((48, 64))})
    with pytest.raises(StateMismatchError, match=r"state/w: saved as F32, like= has int32"):
        load(manager, like={"w": jnp.zeros((64, 48), int)})
    assert counted.readings == []
