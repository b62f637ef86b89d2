"""Variables of Keras as leaves of a state: every dtype, on the backend that is set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from ckpt_core import CheckpointManager, StateError, StateMismatchError
from ckpt_core.tree import UnsupportedValueError
from ckpt_keras.codec import KerasCodec, assign, dtype_of, host_array

BACKEND = keras.config.backend()
DTYPES = [
    "float32", "float16", "bfloat16", "int32", "int8", "uint8", "bool", "uint32",
    *(["float64", "int64"] if BACKEND != "jax" else []),  # JAX has them when it is asked for them
    *(["float8_e4m3fn"] if BACKEND != "tensorflow" else []),
]  # fmt: skip
TRAINABLE = {"float16", "bfloat16", "float32", "float64"}


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[CheckpointManager]:
    with CheckpointManager(tmp_path, experiment="codec") as made:
        yield made


def variable(dtype: str, shape: tuple[int, ...] = (2, 3)) -> Any:
    values = np.arange(np.prod(shape), dtype="float32").reshape(shape)
    return keras.Variable(keras.ops.cast(values, dtype), dtype=dtype, trainable=dtype in TRAINABLE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back(dtype: str, manager: CheckpointManager) -> None:
    one = variable(dtype)
    manager.save({"w": [one]}, step=1).result()
    found = manager.load()["w"][0]
    assert isinstance(found, np.ndarray)
    assert found.dtype == dtype_of(one)
    assert str(found.dtype) == dtype or (BACKEND, dtype) == ("torch", "uint32")
    assert found.tobytes() == host_array(one.value).tobytes()
    other = variable(dtype)
    assign(other, np.zeros((2, 3), found.dtype))
    manager.load(like={"w": [other]})
    assert host_array(other.value).tobytes() == found.tobytes()


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (5, 1, 2)], ids=str)
def test_every_shape(shape: tuple[int, ...], manager: CheckpointManager) -> None:
    one = variable("float32", shape)
    half = variable("bfloat16", shape)
    manager.save({"w": one, "h": half}, step=1).result()
    assert manager.load()["w"].shape == shape
    manager.load(like={"w": one, "h": half})


def test_a_model_and_its_optimizer(manager: CheckpointManager) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    manager.save(
        {"w": model.variables, "o": model.optimizer.variables, "tied": model.variables[0]}, step=1
    ).result()
    before = [host_array(each.value).copy() for each in model.variables]
    for each in model.variables:
        each.assign(keras.ops.ones(each.shape))
    manager.load(like={"w": model.variables, "o": model.optimizer.variables, "tied": model.variables[0]})
    assert all(
        (host_array(each.value) == value).all() for each, value in zip(model.variables, before, strict=True)
    )


def test_what_does_not_fit_is_refused(manager: CheckpointManager) -> None:
    manager.save({"w": variable("float32")}, step=1).result()
    with pytest.raises(StateMismatchError, match="shape"):
        manager.load(like={"w": variable("float32", (2, 4))})
    with pytest.raises(StateMismatchError):
        manager.load(like={"w": variable("int32")})


def test_a_variable_without_a_value_says_why(manager: CheckpointManager) -> None:
    class Empty:
        _value = None
        shape, dtype = (1,), "float32"

    with pytest.raises(UnsupportedValueError, match=r"callback\.model"):
        KerasCodec().spec(Empty())


def test_other_objects_are_not_taken_for_variables(manager: CheckpointManager) -> None:
    with pytest.raises(StateError, match="layer"):
        manager.save({"layer": keras.layers.Dense(1)}, step=1)
