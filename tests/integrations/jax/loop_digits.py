"""A training program as people write it, for `test_jax_contract.py` to kill and to run again.

Run as `python loop_digits.py '{"store": ..., "report": ..., ...}'`; see `contract.adapter` for the options
and for what it reports. Options of its own: `epochs`, `loader` (`plain`, or `grain` with so
many `workers`). `die`: {"step": n} after step n was made, {"evaluate": n} in the evaluation that follows
step n, {"boundary": n} between epochs n-1 and n, {"raise": n} and {"term": n} in the middle of step n,
{"rename": n} when a file gets its name for the n-th time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from ckpt_core import CheckpointManager, OnImprovement, StateMismatchError
from ckpt_jax import JaxCheckpointer, as_state, load_weights
from contract.script import hooks_of, log_to_output, series_of, store_of
from contract.training import Report, digest, kill

OPTIONS: dict[str, Any] = json.loads(sys.argv[1])
SETTINGS = {
    "epochs": 3,
    "loader": "plain",
    "workers": 2,
    "die": {},
    "spoil": "none",
    "task": "train",
    "mechanism": "ours",
}
ASK = SETTINGS | {"experiment": "digits", "resume": "auto", "init_from": None, "second": None} | OPTIONS
ASK["die"] = ASK["die"] or {}
REPORT = Report(ASK["report"])
SIZE, BATCHES, EVALUATE_EVERY, PATIENCE, LEAST = 32, 9, 7, 3, 0.3
OPTIMIZER = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 5, 60))


def digits() -> tuple[np.ndarray, np.ndarray]:
    found = load_digits()
    return (found.data / 16).astype(np.float32), found.target


class Batches:
    """Shuffles in place with a generator of its own, augments from numpy's global one, masks from Python's."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels
        self.order = np.arange(len(images))
        self.rng = np.random.default_rng(3)
        self.passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        self.rng.shuffle(self.order)
        for begin in range(0, len(self.order) - SIZE + 1, SIZE):
            chosen = self.order[begin : begin + SIZE]
            images = self.images[chosen] + np.random.normal(0, 0.02, (SIZE, 64)).astype(np.float32)
            images[:, random.randrange(64)] = self.passes / 10
            yield chosen, images, self.labels[chosen]


def grain_batches(images: np.ndarray, labels: np.ndarray) -> Any:
    """The same with grain, which reads and augments in processes of its own."""
    import grain.python as grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # grain's workers ask for flags, which only absl's own main would parse

    class Augment(grain.RandomMapTransform):  # type: ignore[misc]
        def random_map(self, index: int, rng: np.random.Generator) -> Any:
            image = images[index] + rng.normal(0, 0.02, 64).astype(np.float32)
            image[rng.integers(64)] = 0
            return np.int64(index), image, labels[index]

    sampler = grain.IndexSampler(
        len(images), shuffle=True, seed=3, num_epochs=100, shard_options=grain.NoSharding()
    )
    steps = [Augment(), grain.Batch(SIZE, drop_remainder=True)]
    loader = grain.DataLoader(
        data_source=range(len(images)), sampler=sampler, operations=steps, worker_count=ASK["workers"]
    )
    return iter(loader)


def initial_state(seed: int, hidden: str = "hidden", classes: int = 10) -> dict[str, Any]:
    first, second, rest = jax.random.split(jax.random.key(seed), 3)
    params = {
        hidden: {"w": jax.random.normal(first, (64, 48)) / 8, "b": jnp.zeros(48)},
        "out": {"w": jax.random.normal(second, (48, classes), jnp.bfloat16) / 7, "b": jnp.zeros(classes)},
    }
    # The key is of another kind than the default one, and the mean of a weak type until a step has been made.
    key = jax.random.wrap_key_data(jnp.tile(jax.random.key_data(rest), 2), impl="rbg")
    return {
        "params": params, "optimizer": OPTIMIZER.init(params), "key": key, "count": 0, "mean": jnp.asarray(0.0),
    }  # fmt: skip


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


class Death:
    """Ends the process where `die` says."""

    def __init__(self, manager: Any) -> None:
        self._wait = manager.wait_until_finished if hasattr(manager, "wait_until_finished") else manager.wait
        if "rename" in ASK["die"]:
            self._at_rename(ASK["die"]["rename"])

    def at(self, place: str, number: int) -> None:
        if ASK["die"].get(place) != number:
            return
        if place == "raise":
            raise RuntimeError("on purpose")
        if place == "term":
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self._wait()
        kill()

    @staticmethod
    def _at_rename(left: int) -> None:
        original = os.rename

        def rename(*arguments: Any, **named: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                kill()
            original(*arguments, **named)

        os.rename = rename


class Stopping:
    """Early stopping, with an evaluation every few steps."""

    def __init__(self, held_out: Any) -> None:
        self.held_out = held_out
        self.extras: dict[str, Any] = {"best": float("inf"), "waited": 0}

    def measure(self, params: Any) -> dict[str, float]:
        value = float(evaluate(params, *self.held_out))
        if value < self.extras["best"] - LEAST:
            self.extras |= {"best": value, "waited": 0}
        else:
            self.extras["waited"] += 1
        return {"val_loss": value, "waited": self.extras["waited"]}


def report_step(step: int, chosen: Any, images: Any, loss: jax.Array, state: Any) -> None:
    REPORT.add(
        "step", at=step, indices=[int(index) for index in chosen], images=digest([np.asarray(images).tobytes()]),
        loss=float(loss), mean=float(state["mean"]),
    )  # fmt: skip


def weights_of(params: Any) -> str:
    return digest(jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), params))


def report_end(state: Any, stopping: Stopping, batches: Any) -> None:
    plain = as_state(state["optimizer"])
    REPORT.add(
        "end", weights=weights_of(state["params"]), stopping=dict(stopping.extras), count=int(state["count"]),
        optimizer=digest([np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(plain)]),
        key=digest([np.asarray(jax.random.key_data(state["key"])).tobytes()]),
        types=str([(str(leaf.dtype), getattr(leaf, "weak_type", None)) for leaf in jax.tree.leaves(state)]),
        rng=digest([str(np.random.get_state()), str(random.getstate()), str(getattr(batches, "rng", None))]),
        order=digest([str(getattr(batches, "order", None)), str(getattr(getattr(batches, "rng", None), "bit_generator", None) and batches.rng.bit_generator.state)]),
    )  # fmt: skip


def train(manager: CheckpointManager, batches: Any, held_out: Any) -> None:
    stopping = Stopping(held_out)
    step_function = jax.jit(train_step, donate_argnums=0)
    death = Death(manager)
    second = ASK["second"]
    other = CheckpointManager(ASK["store"], experiment=second["experiment"]) if second else None
    with JaxCheckpointer(
        manager=manager, data=batches, extras=stopping.extras, save_policy=OnImprovement("val_loss"),
        every_n_steps=5, every_n_epochs=1, resume=ASK["resume"], init_from=ASK["init_from"],
    ) as ckpt:  # fmt: skip
        state = ckpt.restore(initial_state(0))
        if ckpt.resumption.kind == "resumed":
            state = spoiled(ckpt, state, stopping)
        REPORT.add("begin", how=ckpt.resumption.kind, step=ckpt.global_step)
        if ASK["init_from"]:
            REPORT.add("started", weights=weights_of(state["params"]))
        for epoch in ckpt.epochs(ASK["epochs"]):
            death.at("boundary", epoch)
            for chosen, x, y in ckpt.batches():
                step = ckpt.global_step + 1
                death.at("raise", step)
                death.at("term", step)
                state, loss = step_function(state, x, y)
                report_step(step, chosen, x, loss, state)
                ckpt.step(state, loss=loss)
                death.at("step", step)
                if step % EVALUATE_EVERY == 0:
                    death.at("evaluate", step)
                    ckpt.evaluated(**stopping.measure(state["params"]))
                if other is not None and step % second["every_n_steps"] == 0:
                    other.save({"state": as_state(state)}, step=step)
                random.random()  # the loop draws from where the data draws
                if ASK["loader"] == "grain" and step % BATCHES == 0:
                    break
            if stopping.extras["waited"] >= PATIENCE:
                break
    if other is not None:
        other.close()
    report_end(state, stopping, batches)
    REPORT.add("series", points=series_of(manager))


def spoiled(ckpt: JaxCheckpointer, state: Any, stopping: Stopping) -> Any:
    """What was resumed, without a part of it."""
    fresh = initial_state(0)
    if ASK["spoil"] == "rng":
        ckpt._at._rng = None
    elif ASK["spoil"] == "data":
        for feed in ckpt._at.feeds.values():
            feed._pending = None
    elif ASK["spoil"] == "extras":
        stopping.extras |= {"best": float("inf"), "waited": 0}
    elif ASK["spoil"] in fresh:
        return state | {ASK["spoil"]: fresh[ASK["spoil"]]}
    return state


def train_with_orbax(batches: Any, held_out: Any) -> None:
    """The same loop with Orbax's CheckpointManager, as its documentation shows it: with grain's iterator in it,
    or without the data, whose position Orbax cannot know, from the beginning of the epoch."""
    import orbax.checkpoint as ocp
    from grain import checkpoint as grain_checkpoint

    def arguments(use: str) -> Any:
        items = {"state": getattr(ocp.args, f"Standard{use}")(state)}
        if ASK["loader"] == "grain":
            items["data"] = getattr(grain_checkpoint, f"Checkpoint{use}")(batches)
        return ocp.args.Composite(**items)

    stopping = Stopping(held_out)
    step_function = jax.jit(train_step, donate_argnums=0)
    state = initial_state(0)
    options = ocp.CheckpointManagerOptions(save_interval_steps=5)
    with ocp.CheckpointManager(os.path.abspath(ASK["store"]), options=options) as manager:
        death = Death(manager)
        step = manager.latest_step() or 0
        if step:
            state = manager.restore(step, args=arguments("Restore"))["state"]
        REPORT.add("begin", how="resumed" if step else "fresh", step=step)
        for epoch in range(step // BATCHES, ASK["epochs"]):
            death.at("boundary", epoch)
            for chosen, x, y in batches:
                step += 1
                state, loss = step_function(state, x, y)
                report_step(step, chosen, x, loss, state)
                manager.save(step, args=arguments("Save"))
                death.at("step", step)
                if step % EVALUATE_EVERY == 0:
                    death.at("evaluate", step)
                    stopping.measure(state["params"])
                random.random()
                if ASK["loader"] == "grain" and step % BATCHES == 0:
                    break
        manager.wait_until_finished()
    report_end(state, stopping, batches)


def evaluate_only(manager: CheckpointManager, held_out: Any) -> None:
    params, _ = load_weights(initial_state(1)["params"], manager, "best")
    REPORT.add("evaluated", weights=weights_of(params), value=float(evaluate(params, *held_out)))


def changed(manager: CheckpointManager) -> None:
    params = initial_state(1, hidden="body", classes=12)["params"]
    try:
        load_weights(params, manager, "best")
    except StateMismatchError as error:
        REPORT.add("refused", paths=list(error.paths))
    _, report = load_weights(params, manager, "best", strict=False, renames={"hidden": "body"})
    REPORT.add(
        "fitted", loaded=report.loaded, missing=report.missing, unexpected=report.unexpected,
        misshapen=report.misshapen, left_out=report.left_out,
    )  # fmt: skip


def main() -> None:
    log_to_output()
    np.random.seed(11)
    random.seed(12)
    images, labels = digits()
    make = grain_batches if ASK["loader"] == "grain" else Batches
    batches: Any = make(images[: SIZE * BATCHES], labels[: SIZE * BATCHES])
    held_out = images[1500:], labels[1500:]
    if ASK["mechanism"] == "native":
        train_with_orbax(batches, held_out)
        return
    with CheckpointManager(
        store_of(ASK), experiment=ASK["experiment"], metric="val_loss", max_pending=2, hooks=hooks_of(ASK),
        on_save_error=ASK.get("on_save_error", "report"),
    ) as manager:  # fmt: skip
        if ASK["task"] == "evaluate":
            evaluate_only(manager, held_out)
        elif ASK["task"] == "changed":
            changed(manager)
        else:
            train(manager, batches, held_out)


if __name__ == "__main__":
    main()
