"""Train a small network on scikit-learn's digits with Keras. Run it again and it resumes; kill it and it resumes.

KERAS_BACKEND=jax python examples/keras_digits.py --store checkpoints --epochs 4     # or torch, or tensorflow
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

import keras
import numpy as np
from sklearn.datasets import load_digits

from ckpt_core import KeepBest, KeepLast
from ckpt_keras import CheckpointCallback


class Masked(keras.utils.PyDataset):
    """The digits in a new order in each epoch, some of their pixels blotted out at random."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        super().__init__()
        self.images, self.labels = images, labels
        self.order = np.arange(len(images))

    def __len__(self) -> int:
        return len(self.order) // 32

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        chosen = self.order[32 * index : 32 * (index + 1)]
        mask = np.random.random((32, 64)) > 0.1
        return (self.images[chosen] * mask).astype("float32"), self.labels[chosen]

    def on_epoch_end(self) -> None:
        np.random.shuffle(self.order)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="checkpoints", help="folder of the checkpoints")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    keras.utils.set_random_seed(7)
    digits = load_digits()
    images, labels = (digits.data / 16).astype("float32"), digits.target
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(128),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3), loss, metrics=["accuracy"])
    checkpoints = CheckpointCallback(
        options.store, experiment="digits", monitor="val_loss", save_freq=10, every_n_epochs=1,
        retention=[KeepLast(3), KeepBest(2)],
    )  # fmt: skip
    model.fit(
        Masked(images[:1500], labels[:1500]),
        validation_data=(images[1500:], labels[1500:]),
        epochs=options.epochs,
        callbacks=[checkpoints, keras.callbacks.ReduceLROnPlateau("val_loss", patience=2)],
        verbose=2,
    )


if __name__ == "__main__":
    main()
