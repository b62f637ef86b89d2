"""Weights of a checkpoint into a model of Keras: the same, a changed one, one that a training begins with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from fit_case import fit, model_of, ours

from ckpt_core import CheckpointManager, StateMismatchError, UsageError
from ckpt_keras import load_weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    keras.utils.set_random_seed(1)


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[tuple[Any, CheckpointManager]]:
    model = model_of(
        keras.layers.Dense(4, name="trunk"), keras.layers.BatchNormalization(), keras.layers.Dense(1)
    )
    fit(model, ours(tmp_path), epochs=1)
    with CheckpointManager(tmp_path, experiment="fit") as manager:
        yield model, manager


def test_weights_by_name_whatever_number_keras_gives(trained: tuple[Any, CheckpointManager]) -> None:
    model, manager = trained
    other = model_of(
        keras.layers.Dense(4, name="trunk"), keras.layers.BatchNormalization(), keras.layers.Dense(1)
    )
    assert other.layers[-1].name != model.layers[-1].name
    report = load_weights(other, manager, "latest")
    assert report.ok
    assert len(report.loaded) == 8
    assert [each.tobytes() for each in other.get_weights()] == [
        each.tobytes() for each in model.get_weights()
    ]


def test_weights_into_a_model_that_has_changed(trained: tuple[Any, CheckpointManager]) -> None:
    model, manager = trained
    other = model_of(keras.layers.Dense(4, name="stem"), keras.layers.Dense(2, name="head"))
    with pytest.raises(StateMismatchError) as caught:
        load_weights(other, manager, "latest")
    assert {"stem.kernel", "trunk.kernel"} <= set(caught.value.paths)
    renames = {"trunk": "stem", model.layers[-1].name: "head", model.layers[1].name: None}
    report = load_weights(other, manager, "latest", strict=False, renames=renames)
    assert report.loaded == ("stem.kernel", "stem.bias")
    assert report.misshapen == (("head.kernel", (4, 1), (4, 2)), ("head.bias", (1,), (2,)))
    assert len(report.left_out) == 4
    assert (other.layers[0].get_weights()[0] == model.layers[0].get_weights()[0]).all()


def test_weights_to_begin_with(trained: tuple[Any, CheckpointManager], tmp_path: Path) -> None:
    model, _ = trained
    seen: list[Any] = []
    look = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: seen.append(other.get_weights()[0]))
    other = model_of(
        keras.layers.Dense(4, name="trunk"), keras.layers.BatchNormalization(), keras.layers.Dense(1)
    )
    fit(other, ours(tmp_path, experiment="tuned", init_from="fit@latest"), look, epochs=1)
    assert (seen[0] == model.get_weights()[0]).all()


def test_weights_of_something_else_and_for_nothing(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, experiment="fit") as manager:
        manager.save({"w": np.ones(3)}, step=1).result()
        with pytest.raises(UsageError, match="not of a Keras training"):
            load_weights(model_of(), manager, "latest")
        with pytest.raises(UsageError, match="no weights yet"):
            load_weights(keras.Sequential([keras.layers.Dense(1)]), manager, "latest")
