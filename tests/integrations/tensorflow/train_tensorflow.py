"""A training loop of TensorFlow's own, without Keras, on scikit-learn's digits, for the tests to kill.

Its one argument is a JSON object of options; see `OPTIONS`. Not a test itself.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from ckpt_core import CheckpointManager
from contract.script import hooks_of, log_to_output
from contract.training import Report, digest, kill

OPTIONS: dict[str, Any] = {
    "store": "store", "report": "report", "epochs": 3, "every": 3, "die": {}, "spoil": "none",
}  # fmt: skip


class Dense(tf.Module):
    def __init__(self, rng: tf.random.Generator, rows: int, columns: int) -> None:
        super().__init__()
        self.w = tf.Variable(rng.normal([rows, columns], stddev=rows**-0.5))
        self.b = tf.Variable(tf.zeros(columns))

    def __call__(self, x: Any) -> Any:
        return x @ self.w + self.b


class Net(tf.Module):
    def __init__(self, rng: tf.random.Generator) -> None:
        super().__init__()
        self.layers = [Dense(rng, 64, 32), Dense(rng, 32, 10)]
        self.mean = tf.Variable(tf.zeros(32), trainable=False)

    def __call__(self, images: Any, rng: tf.random.Generator | None = None) -> Any:
        hidden = self.layers[0](images)
        if rng is not None:
            self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(hidden, 0))
        hidden = tf.nn.relu(hidden - self.mean)
        if rng is not None:
            hidden = tf.where(rng.uniform(tf.shape(hidden)) < 0.7, hidden / 0.7, 0.0)
        return self.layers[1](hidden)


class Adam(tf.Module):
    """As TensorFlow's guide to its core APIs writes it, but for the variables, which are there from the beginning."""

    def __init__(self, variables: Any) -> None:
        super().__init__()
        self.m = [tf.Variable(tf.zeros_like(each)) for each in variables]
        self.v = [tf.Variable(tf.zeros_like(each)) for each in variables]
        self.steps = tf.Variable(0.0)

    def apply(self, gradients: Any, variables: Any) -> None:
        self.steps.assign_add(1.0)
        for gradient, each, m, v in zip(gradients, variables, self.m, self.v, strict=True):
            m.assign(0.9 * m + 0.1 * gradient)
            v.assign(0.99 * v + 0.01 * gradient**2)
            high = m / (1 - 0.9**self.steps)
            each.assign_sub(0.01 * high / (tf.sqrt(v / (1 - 0.99**self.steps)) + 1e-7))


def main() -> None:
    options = OPTIONS | json.loads(sys.argv[1])
    log_to_output()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    report, die = Report(options["report"]), options["die"]
    digits = load_digits()
    images, labels = digits.data[:60].astype(np.float32) / 16, digits.target[:60]

    rng = tf.random.Generator.from_seed(1)
    model = Net(rng)
    optimizer = Adam(model.trainable_variables)
    learned = tf.train.Checkpoint(model=model, optimizer=optimizer)
    state: dict[str, Any] = {"learned": learned, "rng": rng, "at": [0, 0], "step": 0, "losses": [0.0, 0.0]}

    @tf.function
    def train_step(x: Any, y: Any) -> Any:
        x = x + 0.1 * rng.normal(tf.shape(x))
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, rng)))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    def data(epoch: int) -> Any:
        dataset = tf.data.Dataset.from_tensor_slices((images, labels, np.arange(60)))
        return dataset.shuffle(60, seed=epoch).batch(8)

    with CheckpointManager(options["store"], experiment="digits", hooks=hooks_of(options)) as manager:
        if manager.latest() is not None:
            fresh = dict(state)
            state = manager.load(like=state)
            assert state["learned"] is learned and state["rng"] is rng
            if options["spoil"] in ("at", "losses"):
                state[options["spoil"]] = fresh[options["spoil"]]
            elif options["spoil"] == "rng":
                rng.reset_from_seed(1)
            elif options["spoil"] == "optimizer":
                optimizer.m[0].assign(tf.zeros_like(optimizer.m[0]))
            elif options["spoil"] == "mean":
                model.mean.assign(tf.zeros_like(model.mean))
        report.add("begin", step=state["step"])
        first, skip = state["at"]
        for epoch in range(first, options["epochs"]):
            for batch, (x, y, indices) in enumerate(data(epoch).skip(skip), skip):
                loss = float(train_step(x, y))
                report.add("step", at=[epoch, batch], indices=indices.numpy().tolist(), loss=loss)
                losses = [loss, 0.9 * state["losses"][1] + 0.1 * loss]
                state |= {"step": state["step"] + 1, "at": [epoch, batch + 1], "losses": losses}
                if state["step"] % options["every"] == 0:
                    manager.save(state, step=state["step"], metrics={"loss": loss})
                if die.get("batch") == [epoch, batch]:
                    kill()
            skip = 0
    report.add(
        "end", weights=digest([each.numpy().tobytes() for each in model.variables]),
        optimizer=digest([each.numpy().tobytes() for each in optimizer.variables]),
        rng=digest(rng.state.numpy().tobytes()), losses=state["losses"], steps=state["step"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
