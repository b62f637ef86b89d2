"""A Keras training on scikit-learn's digits, as one writes it, for the tests to kill.

Its one argument is a JSON object of options; see `OPTIONS`. Not a test itself.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
from sklearn.datasets import load_digits

import ckpt_keras.companions
import ckpt_keras.loop
import ckpt_keras.sources
import ckpt_keras.state
from ckpt_core import CheckpointManager, StateMismatchError
from ckpt_keras import CheckpointCallback, load_weights
from contract.script import hooks_of, log_to_output, series_of, store_of
from contract.training import Report, digest, kill

OPTIONS: dict[str, Any] = {
    "store": "store", "report": "report", "experiment": "digits", "resume": "auto", "die": {}, "spoil": "none",
    "task": "train", "init_from": None, "second": None, "fault": None, "on_save_error": None, "mechanism": "ours",
    "data": "dataset", "workers": 1, "processes": False, "epochs": 3, "every": 3, "every_epochs": 1,
}  # fmt: skip
SAMPLES, BATCH, STEPS = 56, 8, 7


class Digits(keras.utils.PyDataset):  # type: ignore[misc]
    """Shuffles when an epoch is over, augments and masks from the global generators, as people write it."""

    def __init__(self, images: Any, targets: Any, **options: Any) -> None:
        super().__init__(**options)
        self.images, self.targets = images, targets
        self.indices = np.arange(len(images))
        self.rng = np.random.default_rng(7)

    def __len__(self) -> int:
        return len(self.indices) // BATCH

    def __getitem__(self, index: int) -> Any:
        chosen = self.indices[index * BATCH : (index + 1) * BATCH]
        images = self.images[chosen] + 0.1 * self.rng.normal(size=(BATCH, 1)) + 0.1 * random.random()
        mask = np.random.random(images.shape) > 0.15
        return (images * mask).astype("float32"), self.targets[chosen]

    def on_epoch_end(self) -> None:
        np.random.shuffle(self.indices)


def loader_of(images: Any, targets: Any, workers: int) -> Any:
    """A loader of PyTorch's, with masks that its workers draw."""
    import torch

    def masked(samples: Any) -> Any:
        batch, labels = torch.utils.data.default_collate(samples)
        return batch * (torch.rand(batch.shape) > 0.15) + 0.1 * random.random(), labels

    data = torch.utils.data.TensorDataset(torch.tensor(images), torch.tensor(targets))
    return torch.utils.data.DataLoader(
        data, BATCH, shuffle=True, collate_fn=masked, num_workers=workers, drop_last=True
    )


def pipeline_of(images: Any, targets: Any) -> Any:
    """A tf.data pipeline with random masks."""
    import tensorflow as tf

    def masked(image: Any, target: Any) -> Any:
        return image * tf.cast(tf.random.uniform(tf.shape(image)) > 0.15, image.dtype), target

    data = tf.data.Dataset.from_tensor_slices((images, targets)).shuffle(40)
    return data.batch(BATCH, drop_remainder=True).map(masked).prefetch(2)


class Seen(keras.Metric):  # type: ignore[misc]
    """Which samples the last batch held: their numbers, two in each result. Targets are (label, number)."""

    def __init__(self) -> None:
        super().__init__(name="seen")
        self.numbers = self.add_weight(shape=(BATCH,), initializer="zeros", name="numbers")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.numbers.assign(keras.ops.cast(y_true[:, 1], "float32"))

    def result(self) -> Any:
        pairs = keras.ops.reshape(self.numbers, (BATCH // 2, 2))
        coded = pairs[:, 0] * 1000 + pairs[:, 1]
        return {f"seen{index}": coded[index] for index in range(BATCH // 2)}


def loss(y_true: Any, y_pred: Any) -> Any:
    return keras.losses.sparse_categorical_crossentropy(y_true[:, 0], y_pred, from_logits=True)


def model_of(*, classes: int = 10, hidden: str = "hidden") -> Any:
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Reshape((8, 8, 1)),
            keras.layers.RandomFlip("horizontal"),
            keras.layers.Flatten(),
            keras.layers.GaussianNoise(0.1),
            keras.layers.Dense(24, name=hidden),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(classes, name="head"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2, use_ema=False), loss, metrics=[Seen()])
    return model


class Story(keras.callbacks.Callback):  # type: ignore[misc]
    """Tells what happens, and dies when it is to."""

    def __init__(self, report: Report, options: dict[str, Any], wait: Any) -> None:
        super().__init__()
        self.wait = wait
        self.report = report
        self.die = options["die"]
        self.options = options
        self.epoch = 0
        self.batches = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.options["init_from"] and epoch == 0:
            self.report.add("started", weights=weights_of(self.model))
        if self.die.get("epoch") == epoch:
            self.end()
        self.epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        at = [self.epoch, batch]
        if self.die.get("signal") == at:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.die.get("raise") == at:
            raise RuntimeError("on purpose")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1
        at = [self.epoch, batch]
        indices = [n for k in sorted(logs) if k.startswith("seen") for n in divmod(int(logs[k]), 1000)]
        self.report.add("step", at=at, indices=indices, loss=logs["loss"], batches=self.batches)
        if self.die.get("batch") == at:
            self.end()

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self.die.get("evaluate") == [self.epoch, batch]:
            self.end()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.report.add("step", at=[epoch, "end"], logs=logs)

    def end(self) -> None:
        """Dies when what has been saved so far is durable, so that it is known from where it goes on."""
        self.wait()
        kill()


def weights_of(model: Any) -> str:
    return digest([each.tobytes() for each in model.get_weights()])


def variables(each: Any) -> list[bytes]:
    return [keras.ops.convert_to_numpy(variable.value).tobytes() for variable in each]


def spoil(what: str) -> None:
    """Leave out one thing of what a resume puts back."""
    if what == "rng":
        ckpt_keras.loop.restore_rng = lambda state: None
    elif what == "callbacks":
        ckpt_keras.companions.Companions.restore = lambda self, state: None  # type: ignore[method-assign]
    elif what == "data":
        for kind in ("_FeedSource", "_LoaderSource", "_PipelineSource"):
            getattr(ckpt_keras.sources, kind).resume = lambda self, position: None
    elif what != "none":
        original = ckpt_keras.loop.restore_model

        def restore(model: Any, state: Any) -> None:
            live = ckpt_keras.state._parts(model)[what]
            there = [np.array(keras.ops.convert_to_numpy(each.value)) for each in live]
            original(model, {**state, what: there})

        ckpt_keras.loop.restore_model = restore


def evaluate(options: dict[str, Any], report: Report, validation: Any) -> None:
    model = model_of()
    with CheckpointManager(options["store"], experiment="digits", metric="val_loss") as manager:
        load_weights(model, manager, "best")
    found = model.evaluate(*validation, batch_size=BATCH, verbose=0, return_dict=True)
    report.add("evaluated", weights=weights_of(model), value=found["loss"])


def change(options: dict[str, Any], report: Report) -> None:
    model = model_of(classes=12, hidden="trunk")
    with CheckpointManager(options["store"], experiment="digits", metric="val_loss") as manager:
        try:
            load_weights(model, manager, "latest")
        except StateMismatchError as error:
            report.add("refused", paths=error.paths)
        found = load_weights(model, manager, "latest", strict=False, renames={"hidden": "trunk"})
    report.add(
        "fitted", loaded=found.loaded, missing=found.missing, unexpected=found.unexpected,
        misshapen=found.misshapen, left_out=found.left_out,
    )  # fmt: skip


def main() -> None:
    options = OPTIONS | json.loads(sys.argv[1])
    log_to_output()
    report = Report(options["report"])
    keras.utils.set_random_seed(3)
    digits = load_digits()
    images = (digits.data / 16).astype("float32")
    targets = np.stack([digits.target, np.arange(len(images)) % 1000], 1).astype("float32")
    validation = (images[1000:1040], targets[1000:1040])
    if options["task"] == "evaluate":
        evaluate(options, report, validation)
        return
    if options["task"] == "changed":
        change(options, report)
        return
    spoil(options["spoil"])
    train(options, report, (images[:SAMPLES], targets[:SAMPLES]), validation)


def train(options: dict[str, Any], report: Report, training: Any, validation: Any) -> None:
    model = model_of()
    native = options["mechanism"] == "native"
    callback = None if native else callback_of(options)
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=9, min_delta=0.1)
    plateau = keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, min_delta=0.3)
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch, rate: float(rate * 0.9))
    callbacks = [Story(report, options, (lambda: None) if native else callback.manager.wait), stopping]
    if native:
        callbacks.append(backup_of(options, report))
    else:
        callbacks.append(callback)
        if options["second"]:
            callbacks.append(CheckpointCallback(options["store"], **options["second"]))
    callbacks += [plateau, scheduler]
    arguments: dict[str, Any] = {}
    if options["data"] == "dataset":
        data: Any = Digits(*training, workers=options["workers"], use_multiprocessing=options["processes"])
    elif options["data"] == "loader":
        data, arguments["shuffle"] = loader_of(*training, options["workers"]), False
    elif options["data"] == "pipeline":
        data, arguments["shuffle"] = pipeline_of(*training), False
    else:
        data, arguments = training[0], {"y": training[1], "batch_size": BATCH}
    history = model.fit(
        data, epochs=options["epochs"], validation_data=validation, validation_batch_size=BATCH, verbose=0,
        callbacks=callbacks, **arguments,
    )  # fmt: skip
    report.add(
        "end", weights=weights_of(model), optimizer=digest(variables(model.optimizer.variables)),
        seeds=digest(variables(ckpt_keras.state._parts(model)["seeds"])), history=history.history,
        epochs=history.epoch, stopping=[stopping.wait, stopping.best, stopping.best_epoch],
        schedule=[plateau.wait, plateau.best, plateau.cooldown_counter], batches=callbacks[0].batches,
        random=digest([random.getstate(), repr(np.random.get_state(legacy=False)["state"]["key"].tolist())]),
    )  # fmt: skip
    if callback is None:
        return
    assert callback.resumption is not None
    report.add("begin", how=callback.resumption.kind, step=callback.resumption.step)
    with CheckpointManager(options["store"], experiment=options["experiment"]) as manager:
        report.add("series", points=series_of(manager))


def callback_of(options: dict[str, Any]) -> Any:
    return CheckpointCallback(
        store_of(options), experiment=options["experiment"], monitor="val_loss", save_freq=options["every"],
        every_n_epochs=options["every_epochs"],
        resume=options["resume"], init_from=options["init_from"], hooks=hooks_of(options),
        on_save_error=options["on_save_error"],
    )  # fmt: skip


def backup_of(options: dict[str, Any], report: Report) -> Any:
    """Keras' own mechanism. A death inside of a save comes between its two files."""
    from keras.src.utils import file_utils

    left = [options["die"].get("fsync", 0)]
    original = file_utils.File

    def file(path: str, mode: str = "r") -> Any:
        if path.endswith("training_metadata.json") and mode == "w":
            left[0] -= 1
            if left[0] == 0:
                kill()
        return original(path, mode)

    file_utils.File = file

    class Backup(keras.callbacks.BackupAndRestore):  # type: ignore[misc]
        def on_train_begin(self, logs: Any = None) -> None:
            super().on_train_begin(logs)
            epoch = self.model._initial_epoch or 0
            report.add("begin", how="resumed" if epoch else "fresh", step=epoch * STEPS)

    return Backup(str(Path(options["store"]).with_name("backup")), save_freq=options["every"])


if __name__ == "__main__":
    main()
