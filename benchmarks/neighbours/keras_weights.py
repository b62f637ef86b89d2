"""Keras' `save_weights`, of a layer that holds every tensor of the state as a weight."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.neighbours.contract import Neighbour, Work
from benchmarks.states import State
from benchmarks.timing import make_durable

__all__ = ["KERAS"]


def _model(state: State) -> tuple[Any, dict[str, Any]]:
    """A model of one layer, and its weights by the paths of the state."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    class Everything(keras.layers.Layer):  # type: ignore[misc] # Keras has no types
        def __init__(self) -> None:
            super().__init__(name="everything")
            self.held = {
                path: self.add_weight(
                    shape=tuple(tensor.shape),
                    dtype=str(tensor.dtype).removeprefix("torch."),
                    initializer="zeros",
                    trainable=False,
                )
                for path, tensor in state.tensors.items()
            }
            self.built = True

        def call(self, inputs: Any) -> Any:
            return inputs

    layer = Everything()
    model = keras.Sequential([keras.Input((1,)), layer])
    return model, layer.held


@contextmanager
def _save(state: State, folder: Path) -> Iterator[Work]:
    model, held = _model(state)
    for path, tensor in state.tensors.items():
        held[path].assign(tensor)

    def run() -> None:
        model.save_weights(folder / "state.weights.h5")
        make_durable(folder / "state.weights.h5")

    yield run


@contextmanager
def _load(state: State, folder: Path) -> Iterator[Work]:
    model, held = _model(state)

    def run() -> dict[str, Any]:
        model.load_weights(folder / "state.weights.h5")
        return {path: weight.value for path, weight in held.items()}

    yield run


KERAS = Neighbour(
    "Keras save_weights", "keras", "keras", "`save_weights` to HDF5, then fsync of file and folder; `load_weights`; "
    "backend torch unless `KERAS_BACKEND` says otherwise",
    save=_save, load=_load, memory=4.0,
)  # fmt: skip
