"""How TensorFlow's variables and tensors become bytes and come back. Registered on first sight of one.

Objects that are made of variables, as modules, are `trackables.py`'s.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from ckpt_core.model import TensorSpec
from ckpt_core.tree import ObjectCodec, UnsupportedValueError, dtypes
from ckpt_core.tree.builtin import NumpyCodec
from ckpt_tensorflow.trackables import STRUCTURE, Trackable

if TYPE_CHECKING:
    from ckpt_core.model import Buffer
    from ckpt_core.tree import CodecRegistry

__all__ = ["TensorFlowCodec", "register"]

_host = NumpyCodec()


class TensorFlowCodec:
    """Variables, which are filled in place, and eager tensors, of every dtype with a fixed size, on any device."""

    name = "tensorflow"

    def spec(self, value: Any) -> TensorSpec:
        if tf.is_symbolic_tensor(value) or tf.inside_function():
            raise UnsupportedValueError("it is symbolic and has no values: save outside of tf.function")
        return TensorSpec(_name_of(value.dtype), tuple(value.shape.as_list()))

    def identity(self, value: Any) -> Hashable:
        return id(value)

    def view(self, value: Any) -> Buffer | None:
        # What is read of a variable stays as it is: who writes to the variable then gives it new memory.
        tensor = value.read_value() if isinstance(value, tf.Variable) else value
        return _bytes_of(tensor)

    def hold(self, value: Any) -> Buffer | None:
        """The bytes of a tensor, which nobody can change; of a variable none, whose next change would pay for it."""
        return None if isinstance(value, tf.Variable) else _bytes_of(value)

    def copy_into(self, value: Any, out: Buffer) -> None:
        _host.copy_into(np.asarray(value.numpy()), out)

    def wrap(self, spec: TensorSpec, data: Buffer) -> Any:
        host = _host.wrap(spec, data)
        try:
            if host.dtype.kind in "US":  # TensorFlow would make strings of no fixed size of them
                raise TypeError(host.dtype)
            with tf.device("CPU:0"):
                return tf.constant(host.astype(host.dtype.newbyteorder("="), copy=False))
        except (TypeError, ValueError, tf.errors.OpError) as error:  # a date, a text, a rare kind of float8
            raise UnsupportedValueError(
                f'TensorFlow has no {spec.dtype}: load this tensor as a numpy array with framework="numpy"'
            ) from error

    def destination(self, like: Any, spec: TensorSpec) -> Buffer | None:
        return None

    def assign(self, like: Any, value: Any) -> Any:
        host = np.asarray(value.numpy())
        if not dtypes.fits(host, _name_of(like.dtype)):
            raise UnsupportedValueError(f"its values do not fit in {like.dtype.name}")
        host = host.astype(like.dtype.as_numpy_dtype, copy=False)
        if isinstance(like, tf.Variable):
            like.assign(host)
            return like
        with tf.device(like.device):
            return tf.constant(host)


def _name_of(dtype: Any) -> str:
    if dtype == tf.string:
        raise UnsupportedValueError(
            "a tensor of strings has no bytes of fixed size: save value.numpy().tolist(), as plain values"
        )
    if dtype in (tf.resource, tf.variant):
        raise UnsupportedValueError(
            f"a tensor of dtype {dtype.name} is a handle: save what it is a handle to"
        )
    name = dtypes.name_of_numpy(np.dtype(dtype.as_numpy_dtype))
    if name is None:
        raise UnsupportedValueError(f"a quantized tensor ({dtype.name}) has no plain bytes: dequantize it")
    return name


def _bytes_of(tensor: Any) -> Buffer | None:
    """The memory of a tensor in the host, read-only; None for one on a device."""
    if "CPU" not in (tensor.backing_device or ""):
        return None
    if tensor.shape.num_elements() == 0:
        return np.empty(0, np.uint8)
    return np.frombuffer(tensor, np.uint8)


def register(registry: CodecRegistry) -> None:
    """Entry point of the group `ckpt_core.codecs`."""
    registry.add_tensor(TensorFlowCodec(), tf.Variable, tf.Tensor)
    registry.add_structure(STRUCTURE, Trackable)
    for codec in (
        ObjectCodec("tensorflow.DType", tf.DType, lambda dtype: dtype.name, tf.as_dtype),
        ObjectCodec("tensorflow.TensorShape", tf.TensorShape, _shape, tf.TensorShape),
        ObjectCodec("tensorflow.SparseTensor", tf.SparseTensor, _sparse, lambda parts: tf.SparseTensor(**parts)),
        ObjectCodec("tensorflow.IndexedSlices", tf.IndexedSlices, _slices, lambda parts: tf.IndexedSlices(**parts)),
        ObjectCodec("tensorflow.RaggedTensor", tf.RaggedTensor, _ragged, _ragged_from),
    ):  # fmt: skip
        registry.add_object(codec)


def _shape(shape: Any) -> list[int | None] | None:
    return None if shape.rank is None else list(shape.as_list())


def _sparse(value: Any) -> dict[str, Any]:
    return {"indices": value.indices, "values": value.values, "dense_shape": value.dense_shape}


def _slices(value: Any) -> dict[str, Any]:
    return {"values": value.values, "indices": value.indices, "dense_shape": value.dense_shape}


def _ragged(value: Any) -> dict[str, Any]:
    return {"values": value.flat_values, "splits": list(value.nested_row_splits)}


def _ragged_from(parts: dict[str, Any]) -> Any:
    return tf.RaggedTensor.from_nested_row_splits(parts["values"], parts["splits"])
