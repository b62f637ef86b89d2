"""Loops as flax, equinox and plain JAX document them: stopped in the midst of an epoch, they go on as if they had not been.

Which pytrees are saved how is in test_jax_pytrees.py; real processes that are killed, in test_jax_contract.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ckpt_core import CheckpointManager, HookEvent, StateMismatchError, UsageError, hook
from ckpt_jax import JaxCheckpointer, as_state, load, load_weights

Loop = tuple[Any, Callable[[Any, Any], tuple[Any, Any]]]
"""The state to begin with, and what makes the next one and the loss of it."""


class Batches:
    def __init__(self) -> None:
        self.rng = np.random.default_rng(1)

    def __iter__(self) -> Iterator[np.ndarray]:
        for _ in range(4):
            yield self.rng.normal(size=(8, 6)).astype(np.float32)


def with_linen(seed: int) -> Loop:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.BatchNorm(use_running_average=False)(nn.Dense(5)(x))
            return nn.Dense(6)(nn.Dropout(0.5, deterministic=False)(x))

    class State(TrainState):
        batch_stats: Any
        key: jax.Array

    net, key = Net(), jax.random.key(seed)
    variables = net.init({"params": key, "dropout": key}, jnp.ones((1, 6)))
    state = State.create(
        apply_fn=net.apply, params=variables["params"], batch_stats=variables["batch_stats"], key=key,
        tx=optax.adamw(optax.cosine_decay_schedule(1e-2, 20)),
    )  # fmt: skip

    @jax.jit
    def step(state: State, x: jax.Array) -> tuple[State, jax.Array]:
        def loss_of(params: Any) -> Any:
            variables = {"params": params, "batch_stats": state.batch_stats}
            rngs = {"dropout": jax.random.fold_in(state.key, state.step)}
            y, changed = state.apply_fn(variables, x, mutable=["batch_stats"], rngs=rngs)
            return jnp.mean((y - x) ** 2), changed["batch_stats"]

        (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        return state.apply_gradients(grads=gradients, batch_stats=stats), loss

    return state, step


class Net(nnx.Module):
    """Layers in a list, dropout, batch statistics, and an output tied to its input."""

    def __init__(self, rngs: nnx.Rngs, hidden: str = "hidden", inputs: int = 6) -> None:
        self.embed = nnx.Linear(inputs, 5, rngs=rngs)
        setattr(self, hidden, nnx.Linear(5, 5, rngs=rngs))
        self.norm, self.drop = nnx.BatchNorm(5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.tied = self.embed.kernel

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.drop(self.norm(self.hidden(self.embed(x)))) @ self.tied.T


def with_nnx(seed: int) -> Loop:
    net = Net(nnx.Rngs(seed))
    optimizer = nnx.Optimizer(net, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def train(net: Net, optimizer: nnx.Optimizer[Any], x: jax.Array) -> jax.Array:
        loss, gradients = nnx.value_and_grad(lambda each: jnp.mean((each(x) - x) ** 2))(net)
        optimizer.update(net, gradients)
        return loss

    return (net, optimizer), lambda state, x: (state, train(*state, x))


def with_nnx_split(seed: int) -> Loop:
    (net, optimizer), _ = with_nnx(seed)
    graph, state = nnx.split((net, optimizer))

    @jax.jit
    def step(state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        net, optimizer = nnx.merge(graph, state)
        loss, gradients = nnx.value_and_grad(lambda each: jnp.mean((each(x) - x) ** 2))(net)
        optimizer.update(net, gradients)
        return nnx.state((net, optimizer)), loss

    return state, step


def with_equinox(seed: int) -> Loop:
    net = eqx.nn.MLP(6, 6, 5, 2, key=jax.random.key(seed))
    optimizer = optax.adam(1e-2)
    state = {
        "model": net,
        "optimizer": optimizer.init(eqx.filter(net, eqx.is_array)),
        "key": jax.random.key(seed),
    }

    @eqx.filter_jit(donate="all-except-first")
    def step(x: jax.Array, state: Any) -> tuple[Any, jax.Array]:
        key, noise = jax.random.split(state["key"])

        def loss_of(net: Any) -> jax.Array:
            return jnp.mean((jax.vmap(net)(x) - x + jax.random.normal(noise, x.shape)) ** 2)

        loss, gradients = eqx.filter_value_and_grad(loss_of)(state["model"])
        updates, moments = optimizer.update(gradients, state["optimizer"])
        return {"model": eqx.apply_updates(state["model"], updates), "optimizer": moments, "key": key}, loss

    return state, lambda state, x: step(x, state)


LOOPS = {"linen": with_linen, "nnx": with_nnx, "nnx split": with_nnx_split, "equinox": with_equinox}


class Stopped(Exception):
    """Somebody's bug."""


def program(
    store: Path, make: Callable[[int], Loop], stop: int | None = None
) -> tuple[list[str], list[bytes]]:
    """Losses by step, and the bits of the final state."""
    losses = []
    state, step = make(1 if store.exists() else 0)  # what is resumed has nothing of what it is resumed into
    with JaxCheckpointer(store, experiment="e", data=Batches(), every_n_steps=3) as ckpt:
        state = ckpt.restore(state)
        for _ in ckpt.epochs(3):
            for x in ckpt.batches():
                if ckpt.global_step == stop:
                    raise Stopped
                state, loss = step(state, x)
                ckpt.step(state, loss=loss)
                losses.append(float(loss).hex())
    return losses, [bits(leaf) for leaf in jax.tree.leaves(as_state(state))]


def bits(leaf: Any) -> bytes:
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()


@pytest.mark.parametrize("name", LOOPS)
def test_it_goes_on_as_if_it_had_not_stopped(name: str, tmp_path: Path) -> None:
    whole = program(tmp_path / "whole", LOOPS[name])
    with pytest.raises(Stopped):
        program(tmp_path / "store", LOOPS[name], stop=6)
    resumed = program(tmp_path / "store", LOOPS[name])
    assert (whole[0][6:], whole[1]) == resumed


@pytest.mark.parametrize("donate", [True, False], ids=["donated", "kept"])
def test_every_save_has_the_state_of_its_step(donate: bool, tmp_path: Path) -> None:
    """The loop goes on while it is written, and may reuse the memory of what is."""
    step = jax.jit(lambda x: x * 3 + 1, donate_argnums=(0,) if donate else ())
    with CheckpointManager(tmp_path, experiment="e", max_pending=3) as manager:
        with JaxCheckpointer(manager=manager, data=range(8), every_n_steps=1) as ckpt:
            state = ckpt.restore(jnp.arange(200_000, dtype=jnp.uint32))
            for _ in ckpt.epochs(1):
                for _ in ckpt.batches():
                    state = step(state)
                    ckpt.step(state)
        expected = np.arange(200_000, dtype=np.uint32)
        for number in range(1, 9):
            expected = expected * np.uint32(3) + np.uint32(1)
            assert (np.asarray(manager.load(f"step={number}")["state"]) == expected).all(), number


@pytest.mark.parametrize("donate", [True, False], ids=["donated", "kept"])
def test_what_no_loop_reuses_is_not_copied(donate: bool, tmp_path: Path) -> None:
    """Then a view of it keeps its memory from being reused; else there is a copy, and nothing is kept."""
    written = threading.Event()
    wait = hook(HookEvent.BEFORE_SAVE)(lambda context: None if written.wait(60) else False)
    step = jax.jit(lambda x: x + 1, donate_argnums=(0,) if donate else ())
    reuse = jax.jit(lambda x: x * 0, donate_argnums=0)
    with JaxCheckpointer(tmp_path, experiment="e", data=range(3), every_n_steps=2, hooks=[wait]) as ckpt:
        state = ckpt.restore(jnp.zeros(50_000))
        for _ in ckpt.epochs(1):
            for number in ckpt.batches():
                if number == 2:
                    zeros = reuse(state)
                    reused, state = state.is_deleted(), zeros
                    written.set()
                state = step(state)
                ckpt.step(state)
    assert reused == donate
    with CheckpointManager(tmp_path, experiment="e") as manager:
        assert set(np.asarray(manager.load("step=2")["state"])) == {2.0}


def test_a_loop_goes_on_under_another_mesh(tmp_path: Path, mesh_4x2: Mesh, mesh_2x4: Mesh) -> None:
    step = jax.jit(lambda state, x: {"w": state["w"] * 2 + x, "n": state["n"] + 1})

    def train(mesh: Mesh, spec: Any, epochs: int) -> Any:
        sharding = NamedSharding(mesh, spec)
        with JaxCheckpointer(tmp_path, experiment="e", data=[1.0, 2.0]) as ckpt:
            state = ckpt.restore({"w": jax.device_put(jnp.zeros((8, 16)), sharding), "n": jnp.asarray(0)})
            assert state["w"].sharding == sharding
            for _ in ckpt.epochs(epochs):
                for x in ckpt.batches():
                    state = step(state, x)
                    ckpt.step(state)
        return state

    train(mesh_4x2, P("rows", "columns"), 1)
    state = train(mesh_2x4, P(None, "columns"), 2)
    assert state["w"].sharding.mesh == mesh_2x4
    assert (np.asarray(state["w"]) == 1 * 8 + 2 * 4 + 1 * 2 + 2).all()
    assert int(state["n"]) == 4


PARTS = {"linen": "params", "nnx": "0", "nnx split": "0", "equinox": "model"}


class TestWeights:
    """From another training, or into a model that has changed since."""

    @pytest.mark.parametrize("name", LOOPS)
    def test_a_training_begins_with_those_of_another(self, name: str, tmp_path: Path) -> None:
        program(tmp_path, LOOPS[name])
        own, (state, _) = named_bits(LOOPS[name](7)[0]), LOOPS[name](7)
        with JaxCheckpointer(tmp_path, experiment="tuned", init_from="e@latest") as ckpt:
            begun = named_bits(ckpt.restore(state))
            assert ckpt.resumption.kind == "fresh"
        with CheckpointManager(tmp_path, experiment="e") as manager:
            theirs = named_bits(load(manager, like=LOOPS[name](8)[0]))
        assert any(path.startswith(PARTS[name]) and own[path] != theirs[path] for path in own)
        for path, value in begun.items():
            is_weight = path.startswith(PARTS[name]) and "drop" not in path
            assert value == (theirs if is_weight else own)[path], path
        with JaxCheckpointer(tmp_path, experiment="tuned", init_from="e@nowhere") as ckpt:
            ckpt.restore(LOOPS[name](9)[0])
            assert ckpt.resumption.kind == "complete", "weights to begin with are for those who begin"

    def test_a_part_that_is_not_plain_to_see(self, tmp_path: Path) -> None:
        with JaxCheckpointer(tmp_path, experiment="e") as ckpt:
            ckpt.restore({"w": jnp.ones(2), "n": 0})
        options: Any = {"experiment": "tuned", "init_from": "e@latest"}
        with (
            pytest.raises(UsageError, match=r"it has w, n.*weights="),
            JaxCheckpointer(tmp_path, **options) as ckpt,
        ):
            ckpt.restore({"w": jnp.zeros(2), "n": 5})
        with JaxCheckpointer(tmp_path, **options, weights="w") as ckpt:
            state = ckpt.restore({"w": jnp.zeros(2), "n": 5})
            assert (state["w"].tolist(), state["n"]) == ([1, 1], 5)

    def test_a_model_that_has_changed(self, manager: CheckpointManager) -> None:
        manager.save({"state": as_state((Net(nnx.Rngs(1)), 3))}, step=1).result()
        net = Net(nnx.Rngs(2), hidden="middle", inputs=7)
        before = named_bits(net)
        with pytest.raises(StateMismatchError) as caught:
            load_weights(net, manager, "latest")
        assert {"hidden/kernel", "middle/kernel", "embed/kernel"} < set(caught.value.paths)
        assert named_bits(net) == before, "nothing is loaded"

        renames = {"hidden": "middle", "norm": None}
        same, report = load_weights(net, manager, "latest", strict=False, renames=renames)

        assert same is net
        assert set(report.loaded) == {"embed/bias", "middle/bias", "middle/kernel"}
        assert report.misshapen == (("embed/kernel", (6, 5), (7, 5)),)
        assert set(report.left_out) == {"norm/bias", "norm/mean", "norm/scale", "norm/var"}
        assert set(report.missing) == set(report.left_out), "which are in the model, too"
        assert report.checkpoint == manager.latest()

    def test_onto_another_mesh_in_another_dtype(self, manager: CheckpointManager, mesh_2x4: Mesh) -> None:
        host = np.arange(32, dtype=np.float32).reshape(8, 4)
        manager.save({"params": {"w": jnp.asarray(host), "b": jnp.ones(3)}}, step=1).result()
        sharding = NamedSharding(mesh_2x4, P("columns"))
        like = {"w": jax.ShapeDtypeStruct((8, 4), jnp.bfloat16, sharding=sharding), "new": jnp.zeros(1)}
        loaded, report = load_weights(like, manager, "latest", strict=False)
        assert (loaded["w"].sharding, loaded["w"].dtype) == (sharding, jnp.bfloat16)
        assert (np.asarray(loaded["w"], np.float32) == host).all()
        assert (report.loaded, report.missing, report.unexpected) == (("w",), ("new",), ("b",))

    def test_where_there_are_none(self, manager: CheckpointManager) -> None:
        manager.save({"x": jnp.ones(2)}, step=1).result()
        with pytest.raises(UsageError, match="no weights at state/params, .* part="):
            load_weights({"x": jnp.zeros(2)}, manager, "latest")
        loaded, _ = load_weights({"x": jnp.zeros(2)}, manager, "latest", part="")
        assert loaded["x"].tolist() == [1, 1]


def named_bits(tree: Any) -> dict[str, bytes]:
    """The bits of each array by its path."""
    found = {}

    def note(path: str | None, leaf: Any) -> Any:
        found[path or ""] = bits(leaf)
        return leaf

    as_state(tree, note)
    return found
