"""A training program as people write it, to be killed and run again by `test_jax_contract.py`.

    python loop_digits.py FOLDER DIGITS [--epochs N] [--die KIND]

DIGITS is scikit-learn's data set in a file of numpy's, which takes less time than to import scikit-learn. It writes each step's loss, indices and keys to `FOLDER/steps.txt`, the final state to `FOLDER/final.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ckpt_core import CheckpointManager
from ckpt_core.stores import LocalStore
from ckpt_jax import JaxCheckpointer

STEPS_IN_EPOCH = 9
EVALUATE_EVERY = 7
OPTIMIZER = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 5, 60))


class Batches:
    """Shuffles in place with a generator of its own, augments from the global one, masks from Python's."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, size: int) -> None:
        self.images, self.labels, self.size = images, labels, size
        self.order = np.arange(len(images))
        self.rng = np.random.default_rng(3)
        self.passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        self.rng.shuffle(self.order)
        for begin in range(0, len(self.order) - self.size + 1, self.size):
            chosen = self.order[begin : begin + self.size]
            images = self.images[chosen] + np.random.normal(0, 0.02, (self.size, 64)).astype(np.float32)
            images[:, random.randrange(64)] = self.passes / 10
            yield chosen, images, self.labels[chosen]


def initial_state(seed: int) -> dict[str, Any]:
    first, second, rest = jax.random.split(jax.random.key(seed), 3)
    params = {
        "hidden": {"w": jax.random.normal(first, (64, 48)) / 8, "b": jnp.zeros(48)},
        "out": {"w": jax.random.normal(second, (48, 10), jnp.bfloat16) / 7, "b": jnp.zeros(10)},
    }
    # The key is of another kind than the default one, and the count of a weak type until a step has been made.
    key = jax.random.wrap_key_data(jnp.tile(jax.random.key_data(rest), 2), impl="rbg")
    return {
        "params": params,
        "optimizer": OPTIMIZER.init(params),
        "key": key,
        "count": 0,
        "mean": jnp.asarray(0.0),
    }


def loss_of(params: Any, images: jax.Array, labels: jax.Array, key: jax.Array | None) -> jax.Array:
    hidden = jax.nn.relu(images @ params["hidden"]["w"] + params["hidden"]["b"])
    if key is not None:
        hidden = jnp.where(jax.random.bernoulli(key, 0.8, hidden.shape), hidden / 0.8, 0)
    logits = hidden.astype(jnp.bfloat16) @ params["out"]["w"] + params["out"]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def evaluate(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    return loss_of(params, images, labels, None)


def train_step(state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
    key, dropout = jax.random.split(state["key"])
    loss, gradients = jax.value_and_grad(loss_of)(state["params"], images, labels, dropout)
    updates, optimizer = OPTIMIZER.update(gradients, state["optimizer"], state["params"])
    state = {
        "params": optax.apply_updates(state["params"], updates), "optimizer": optimizer, "key": key,
        "count": state["count"] + 1, "mean": 0.9 * state["mean"] + 0.1 * loss,
    }  # fmt: skip
    return state, loss


class DyingStore(LocalStore):
    """Dies in the midst of the pack of the third save."""

    saves = 0

    def create(self, key: str) -> Any:
        writer = super().create(key)
        if key.startswith("packs/"):
            DyingStore.saves += 1
            if DyingStore.saves == 3:
                write = writer.write

                def dying(*arguments: Any) -> Any:
                    write(*arguments)
                    die()

                writer.write = dying
        return writer


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("digits", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--die", default="")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    np.random.seed(11)
    random.seed(12)
    with np.load(options.digits) as digits:
        images, labels = (digits["data"] / 16).astype(np.float32), digits["target"]
    batches = Batches(images[: 32 * STEPS_IN_EPOCH], labels[: 32 * STEPS_IN_EPOCH], 32)
    held_out = images[1500:], labels[1500:]
    extras = {"best": float("inf"), "waited": 0}
    step_function = jax.jit(train_step, donate_argnums=0)
    store = DyingStore(options.folder / "store") if options.die == "inside-save" else options.folder / "store"

    with (
        CheckpointManager(store, experiment="digits", metric="held_out", max_pending=2) as manager,
        JaxCheckpointer(
            manager=manager, data=batches, extras=extras, every_n_steps=4, every_n_epochs=1
        ) as ckpt,
        (options.folder / "steps.txt").open("a", buffering=1) as log,
    ):
        state = ckpt.restore(initial_state(0))
        for epoch in ckpt.epochs(options.epochs):
            if options.die == f"boundary {epoch}":
                manager.wait()
                die()
            for chosen, x, y in ckpt.batches():
                state, loss = step_function(state, x, y)
                step = ckpt.global_step + 1
                seen = hashlib.sha256(chosen.tobytes() + x.tobytes()).hexdigest()[:16]
                print(step, epoch, float(loss).hex(), float(state["mean"]).hex(), seen, file=log)
                ckpt.step(state, loss=loss)
                if options.die == f"step {step}":
                    manager.wait()
                    die()
                if step % EVALUATE_EVERY == 0:
                    if options.die == f"evaluate {step}":
                        manager.wait()
                        die()
                    held = float(evaluate(state["params"], *held_out))
                    better = held < extras["best"]
                    extras["best"], extras["waited"] = (
                        min(held, extras["best"]),
                        0 if better else extras["waited"] + 1,
                    )
                    ckpt.evaluated(held_out=held, waited=extras["waited"])
                random.random()  # the loop draws from where the data draws
    bits = {
        jax.tree_util.keystr(path): np.asarray(
            jax.random.key_data(leaf) if path[0].key == "key" else leaf
        ).tobytes()
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    final = {
        "state": {name: data.hex() for name, data in bits.items()},
        "types": str(
            [(str(leaf.dtype), getattr(leaf, "weak_type", None)) for leaf in jax.tree.leaves(state)]
        ),
        "extras": extras,
        "random": [str(np.random.get_state()), str(random.getstate()), str(batches.rng.bit_generator.state)],
    }
    (options.folder / "final.json").write_text(json.dumps(final))


if __name__ == "__main__":
    main()
