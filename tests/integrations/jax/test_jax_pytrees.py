"""Pytrees of flax, optax, equinox and one's own, saved and brought back into the same structure by path."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, struct
from flax.core import FrozenDict, freeze
from flax.training.train_state import TrainState

from ckpt_core import CheckpointManager, CorruptionError, HookEvent, NotFoundError, StateMismatchError, hook
from ckpt_jax import as_state, load


class Network(nnx.Module):
    """Layers in a list, dropout, batch statistics, and an output tied to its input."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Linear(4, 8, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)])
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.tied = self.embed.kernel

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embed(x)
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return self.dropout(self.norm(x)) @ self.tied.T


@struct.dataclass
class Running:
    total: jax.Array
    name: str = struct.field(pytree_node=False, default="running")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Own:
    weights: list[jax.Array]
    label: str = dataclasses.field(metadata={"static": True}, default="own")


@jax.tree_util.register_pytree_node_class
class Unnamed:
    """A node that gives its children no names."""

    def __init__(self, *children: Any) -> None:
        self.children = children

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        return self.children, None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any, ...]) -> Unnamed:
        return cls(*children)


def linen(seed: int) -> Any:
    return nn.Dense(3).init(jax.random.key(seed), jnp.ones((1, 2)))


def after_a_step(optimizer: optax.GradientTransformation, seed: int) -> Any:
    params = linen(seed)
    return optimizer.update(params, optimizer.init(params), params)[1]


def train_state(seed: int) -> TrainState:
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return TrainState.create(apply_fn=nn.Dense(3).apply, params=linen(seed), tx=optimizer)


def bits(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    if isinstance(leaf, (jax.Array, np.ndarray)):
        return (
            type(leaf),
            leaf.dtype,
            getattr(leaf, "weak_type", None),
            leaf.shape,
            np.asarray(leaf).tobytes(),
        )
    return leaf if not callable(leaf) else None


def same(one: Any, other: Any) -> bool:
    """Equal structures with leaves that are equal bit for bit, and of the same types."""
    left, right = jax.tree.flatten(one), jax.tree.flatten(other)
    return left[1] == right[1] and [bits(leaf) for leaf in left[0]] == [bits(leaf) for leaf in right[0]]


# Made twice with different seeds: what is saved, and what it is loaded into. What is code is the same in both.
TREES = {
    "dicts": lambda seed: {"a": [jnp.ones(2) * seed, (jnp.arange(3) + seed, None)], "b": {"c": seed}},
    "frozen dict": lambda seed: freeze(linen(seed)),
    "ordered dict": lambda seed: OrderedDict(b=jnp.ones(1) * seed, a=jnp.ones(2) * seed),
    "dict of tuples": lambda seed: {("layer", 1): jnp.ones(1) * seed, ("layer", 2): jnp.ones(2) * seed},
    "dict of numbers": lambda seed: {2: jnp.ones(1) * seed, 10: {"a/b": 1.5 * seed}},
    "optax": lambda seed: after_a_step(optax.adamw(1e-3), seed),
    "optax hyperparameters": lambda seed: optax.inject_hyperparams(optax.sgd)(0.1 + seed).init(linen(seed)),
    "optax masked": lambda seed: after_a_step(
        optax.masked(optax.adam(1e-3), {"params": {"kernel": True, "bias": False}}), seed
    ),
    "nnx state": lambda seed: nnx.split(Network(nnx.Rngs(seed)))[1],
    "equinox": lambda seed: eqx.nn.MLP(2, 3, 4, 2, key=jax.random.key(seed)),
    "equinox with state": lambda seed: eqx.nn.LSTMCell(2, 3, key=jax.random.key(seed)),
    "flax dataclass": lambda seed: Running(jnp.ones(2) * seed),
    "registered dataclass": lambda seed: Own([jnp.ones(2) * seed, jnp.zeros(1) + seed]),
    "node without names": lambda seed: Unnamed(jnp.ones(2) * seed, [seed]),
    "keys": lambda seed: {"one": jax.random.key(seed), "many": jax.random.split(jax.random.key(seed), 3)},
    "numpy": lambda seed: {"x": np.arange(3) + seed, "scalar": np.float32(seed)},
    "weak types": lambda seed: {"w": jnp.asarray(1.5 * seed), "v": jnp.full((2, 3), 0.5 * seed), "i": jnp.asarray(seed)},
    "one array": lambda seed: jnp.arange(3.0) * seed,
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_round_trip(manager: CheckpointManager, name: str) -> None:
    saved, like = TREES[name](3), TREES[name](4)
    assert not same(saved, like)
    manager.save({"state": as_state(saved)}, step=1).result()

    loaded = load(manager, like=like)

    assert type(loaded) is type(saved)
    assert same(loaded, saved)


def test_nnx_objects_are_updated_in_place(manager: CheckpointManager) -> None:
    def build(seed: int) -> tuple[Network, nnx.Optimizer[Any]]:
        network = Network(nnx.Rngs(seed))
        return network, nnx.Optimizer(network, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(network: Network, optimizer: nnx.Optimizer[Any], x: jax.Array) -> jax.Array:
        loss, gradients = nnx.value_and_grad(lambda n: jnp.mean((n(x) - x) ** 2))(network)
        optimizer.update(network, gradients)
        return loss

    x = jax.random.normal(jax.random.key(9), (16, 4))
    theirs, mine = build(0), build(1)
    step(*theirs, x)
    manager.save({"state": as_state(theirs)}, step=1).result()
    kernel = mine[0].embed.kernel

    loaded = load(manager, like=mine)

    assert loaded[0] is mine[0]
    assert loaded[1] is mine[1]
    assert mine[0].tied is mine[0].embed.kernel is kernel
    for _ in range(3):  # parameters, moments, statistics and the stream of dropout keys
        assert step(*mine, x).tobytes() == step(*theirs, x).tobytes()


def test_train_state_whose_counter_has_become_an_array(manager: CheckpointManager) -> None:
    """flax begins with Python's 0, and a jitted step makes an array of it."""
    state = jax.jit(lambda s: s.apply_gradients(grads=s.params))(train_state(0))
    assert state.step.weak_type
    manager.save({"state": as_state(state)}, step=1).result()

    loaded = load(manager, like=train_state(1))

    assert bits(loaded.step) == bits(state.step)
    assert same(loaded.params, state.params)
    assert same(loaded.opt_state, state.opt_state)


def test_number_that_was_not_an_array_yet(manager: CheckpointManager) -> None:
    manager.save({"state": {"step": 0}}, step=0).result()
    assert load(manager, like={"step": jnp.asarray(7)}) == {"step": 0}


def test_paths_are_readable(manager: CheckpointManager) -> None:
    network = Network(nnx.Rngs(0))
    manager.save(
        {"state": as_state({"net": network, "opt": optax.adam(1).init({"w": jnp.ones(1)})})}, step=1
    ).result()
    with manager.open() as reader:
        assert {"state/net/layers/1/kernel", "state/net/norm/mean", "state/opt/0/mu/w"} <= set(reader)


def test_a_part_of_a_checkpoint(manager: CheckpointManager) -> None:
    """To fine-tune from the best of another experiment, say: the parameters and nothing else."""
    manager.save({"state": as_state(train_state(3))}, step=1).result()
    params = load(manager, like=freeze(linen(4)), path="state/params")
    assert isinstance(params, FrozenDict)
    assert same(params.unfreeze(), linen(3))
    with pytest.raises(NotFoundError, match=r"no 'state/parms'; there is .*state/params"):
        load(manager, like={}, path="state/parms/kernel")


class TestMismatch:
    def test_names_every_path(self, manager: CheckpointManager) -> None:
        manager.save({"state": {"a": jnp.ones(2), "old": jnp.ones(1)}}, step=1).result()
        with pytest.raises(StateMismatchError) as caught:
            load(manager, like={"a": jnp.ones(2), "new": jnp.ones(1)})
        assert set(caught.value.paths) == {"state/old", "state/new"}

    def test_another_kind_of_key(self, manager: CheckpointManager) -> None:
        manager.save({"state": {"key": jax.random.key(0)}}, step=1).result()
        with pytest.raises(StateMismatchError, match=r"state/key: saved as random keys key<fry>"):
            load(manager, like={"key": jax.random.key(0, impl="rbg")})

    def test_a_key_for_an_array(self, manager: CheckpointManager) -> None:
        manager.save({"state": {"key": jax.random.PRNGKey(0)}}, step=1).result()
        with pytest.raises(StateMismatchError, match="state/key"):
            load(manager, like={"key": jax.random.key(0)})


def flip(manager: CheckpointManager, number: int) -> None:
    """One bit in the middle of the `number`-th pack."""
    root = manager.workspace.repository.store.root
    pack = sorted(root.glob("packs/**/*.safetensors"))[number]
    data = bytearray(pack.read_bytes())
    data[-len(data) // 4] ^= 16
    pack.write_bytes(data)


def test_damage_is_told_and_an_older_checkpoint_is_loaded(manager: CheckpointManager) -> None:
    heard: list[tuple[HookEvent, int | None]] = []
    manager.hooks.register_hook(hook(*HookEvent)(lambda c: heard.append((c.event, c.step))))
    for step in (1, 2):
        manager.save({"state": {"w": jnp.arange(5000.0) * step}}, step=step).result()
    heard.clear()
    flip(manager, 1)

    loaded = load(manager, like={"w": jnp.zeros(5000)})

    assert same(loaded, {"w": jnp.arange(5000.0)})
    assert manager.loaded is not None
    assert manager.loaded.step == 1
    assert (HookEvent.CORRUPTION_FOUND, 2) in heard
    assert heard[-1] == (HookEvent.AFTER_LOAD, 1)
    with pytest.raises(CorruptionError):
        load(manager, "step=2", like={"w": jnp.zeros(5000)})


@pytest.mark.parametrize("catalog", [True, False], ids=["in the catalog", "catalog lost"])
def test_a_manifest_that_nobody_can_read_is_told(
    manager: CheckpointManager, caplog: pytest.LogCaptureFixture, catalog: bool
) -> None:
    for step in (1, 2):
        manager.save({"state": {"w": jnp.arange(3) * step}}, step=step).result()
    latest = manager.resolve("latest")
    path = manager.workspace.repository.store.root / latest.key
    path.write_bytes(path.read_bytes()[:-7])
    root = manager.workspace.repository.store.root
    manager.close()
    if not catalog:
        for file in root.glob("catalog.db*"):
            file.unlink()

    with CheckpointManager(root, experiment="jax") as again:
        loaded = load(again, like={"w": jnp.zeros(3, int)})

    assert same(loaded, {"w": jnp.arange(3)})
    told = [record.getMessage() for record in caplog.records if latest.id in record.getMessage()]
    assert any("cannot be loaded" in message for message in told)
