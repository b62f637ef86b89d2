"""What the tests of a fit in this process share: a small model, its data, and a callback of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from ckpt_keras import CheckpointCallback
from ckpt_keras.codec import host_array

BACKEND = keras.config.backend()
X = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
Y = X.sum(1, keepdims=True)


def model_of(*layers: Any, **options: Any) -> Any:
    model = keras.Sequential([keras.Input((3,)), *(layers or [keras.layers.Dense(1)])])
    model.compile(**{"optimizer": keras.optimizers.Adam(0.01), "loss": "mse", "run_eagerly": True, **options})
    return model


def fit(model: Any, *callbacks: Any, epochs: int = 2, **options: Any) -> Any:
    """Four batches an epoch."""
    options = {"x": X, "y": Y, "batch_size": 4, "verbose": 0, **options}
    return model.fit(**options, epochs=epochs, callbacks=list(callbacks))


def ours(folder: Path, **options: Any) -> CheckpointCallback:
    return CheckpointCallback(folder, **{"experiment": "fit", **options})


def bits(model: Any) -> list[bytes]:
    variables = [*model.variables, *model.optimizer.variables]
    return [host_array(variable.value).tobytes() for variable in variables]
