"""A plain JAX loop on scikit-learn's digits. Run it again and it resumes; kill it and it resumes.

python examples/jax_loop.py --store checkpoints --epochs 4
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from ckpt_core import KeepBest, KeepLast
from ckpt_jax import JaxCheckpointer

OPTIMIZER = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 20, 400))


class Batches:
    """In an order that is new for each epoch, as one writes it oneself."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, size: int) -> None:
        self.images, self.labels, self.size, self.rng = images, labels, size, np.random.default_rng(7)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order = self.rng.permutation(len(self.images))
        for begin in range(0, len(order) - self.size + 1, self.size):
            chosen = order[begin : begin + self.size]
            yield self.images[chosen], self.labels[chosen]


def loss_of(params: Any, images: jax.Array, labels: jax.Array, dropout: jax.Array | None = None) -> jax.Array:
    hidden = jax.nn.relu(images @ params["w1"] + params["b1"])
    if dropout is not None:
        hidden = jnp.where(jax.random.bernoulli(dropout, 0.8, hidden.shape), hidden / 0.8, 0)
    logits = hidden @ params["w2"] + params["b2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train_step(state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
    key, dropout = jax.random.split(state["key"])
    loss, gradients = jax.value_and_grad(loss_of)(state["params"], images, labels, dropout)
    updates, optimizer = OPTIMIZER.update(gradients, state["optimizer"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer, "key": key}, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="checkpoints")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    digits = load_digits()
    images, labels = (digits.data / 16).astype(np.float32), digits.target
    one, two, key = jax.random.split(jax.random.key(0), 3)
    params = {"w1": jax.random.normal(one, (64, 128)) / 8, "b1": jnp.zeros(128)}
    params |= {"w2": jax.random.normal(two, (128, 10)) / 11, "b2": jnp.zeros(10)}
    state = {"params": params, "optimizer": OPTIMIZER.init(params), "key": key}
    step, evaluate = jax.jit(train_step, donate_argnums=0), jax.jit(loss_of)
    with JaxCheckpointer(
        options.store, experiment="digits", data=Batches(images[:1500], labels[:1500], 32), every_n_steps=10,
        metric="held_out", retention=[KeepLast(3), KeepBest(2)],
    ) as ckpt:  # fmt: skip
        state = ckpt.restore(state)
        for _ in ckpt.epochs(options.epochs):
            for x, y in ckpt.batches():
                state, loss = step(state, x, y)
                ckpt.step(state, loss=loss)
            ckpt.evaluated(held_out=evaluate(state["params"], images[1500:], labels[1500:]))


if __name__ == "__main__":
    main()
