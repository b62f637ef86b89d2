"""Stay with Orbax, and have every file checked, every step listed. Run it again and it resumes; kill it and it resumes.

python examples/orbax_dropin.py --store runs --steps 60
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from sklearn.datasets import load_digits

from ckpt_core import CorruptionError, HookContext, HookEvent, KeepBest, KeepLast, hook
from ckpt_jax import OrbaxHandler

OPTIMIZER = optax.adam(1e-2)


@hook(HookEvent.AFTER_SAVE)
def tell(context: HookContext) -> None:
    print(f"step {context.step} is committed: {dict(context.metrics)}", flush=True)


@jax.jit
def train_step(state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
    def loss_of(params: Any) -> jax.Array:
        logits = images @ params["w"] + params["b"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.value_and_grad(loss_of)(state["params"])
    updates, optimizer = OPTIMIZER.update(gradients, state["optimizer"])
    return {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer}, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("runs"))
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    digits = load_digits()
    images, labels, params = digits.data / 16, digits.target, {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    state = {"params": params, "optimizer": OPTIMIZER.init(params)}

    with (
        OrbaxHandler(options.store / "catalog", experiment="digits", metric="loss", hooks=[tell]) as watch,
        ocp.CheckpointManager(
            (options.store / "orbax").absolute(),
            options=ocp.CheckpointManagerOptions(
                save_interval_steps=20, best_fn=lambda metrics: metrics["loss"], best_mode="min",
                preservation_policy=watch.preservation(KeepLast(2), KeepBest(1)),
            ),
            handler_registry=watch.registry(),
        ) as manager,
    ):  # fmt: skip
        begin = manager.latest_step() or 0
        if begin:
            try:
                state = manager.restore(begin, args=ocp.args.StandardRestore(state))
            except CorruptionError as error:
                raise SystemExit(f"damaged: {error}") from None
            print(f"restored step {begin}")
        for step in range(begin + 1, options.steps + 1):
            chosen = np.random.default_rng(step).integers(0, 1500, 64)
            state, loss = train_step(state, images[chosen], labels[chosen])
            manager.save(step, args=ocp.args.StandardSave(state), metrics={"loss": float(loss)})
        manager.wait_until_finished()
    print(f"weights after step {options.steps}: {float(jnp.abs(state['params']['w']).sum()).hex()}")


if __name__ == "__main__":
    main()
