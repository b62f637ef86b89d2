"""How variables of Keras become bytes, on whatever backend they live. Registered on first sight of one.

Loaded without `like=` they come as numpy arrays: an array belongs to no backend, and a variable to a model.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from ckpt_core.model import TensorSpec
from ckpt_core.tree import UnsupportedValueError, dtypes
from ckpt_core.tree.builtin import NumpyCodec

if TYPE_CHECKING:
    from ckpt_core.model import Buffer
    from ckpt_core.tree import CodecRegistry

__all__ = ["KerasCodec", "assign", "dtype_of", "host_array", "register"]

_host = NumpyCodec()


class KerasCodec:
    """`keras.Variable`s of every dtype and every backend, trainable or not."""

    name = "keras"

    def spec(self, value: Any) -> TensorSpec:
        if getattr(value, "_value", value) is None:
            raise UnsupportedValueError(
                "this variable has no value at present: Keras takes those of a model away while it trains on JAX; save "
                "in a callback, which gets them back by callback.model, or when fit is over"
            )
        name = dtypes.name_of_numpy(dtype_of(value))
        if name is None:
            raise UnsupportedValueError(f"a variable of dtype {value.dtype} has no fixed bytes to store")
        return TensorSpec(name, tuple(value.shape))

    def identity(self, value: Any) -> Hashable:
        return id(value)

    def view(self, value: Any) -> Buffer | None:
        array = host_array(value.value)
        return _host.view(array) if array.flags.c_contiguous else None

    def copy_into(self, value: Any, out: Buffer) -> None:
        _host.copy_into(host_array(value.value), out)

    def wrap(self, spec: TensorSpec, data: Buffer) -> np.ndarray[Any, Any]:
        return _host.wrap(spec, data)

    def destination(self, like: Any, spec: TensorSpec) -> Buffer | None:
        return None

    def assign(self, like: Any, value: np.ndarray[Any, Any]) -> Any:
        dtype = dtype_of(like)
        name = dtypes.name_of_numpy(dtype)
        if name is None or not dtypes.fits(value, name):
            raise UnsupportedValueError(f"its values do not fit in {like.dtype}")
        assign(like, value.astype(dtype, copy=False))
        return like


def host_array(tensor: Any) -> np.ndarray[Any, Any]:
    """A tensor of any backend in host memory, without a copy where it can be. Keras' own conversion copies, goes
    by way of float32, and on PyTorch makes numpy warn."""
    if hasattr(tensor, "detach"):
        return _of_torch(tensor.detach().cpu().contiguous())
    return np.asarray(tensor.numpy() if hasattr(tensor, "numpy") else tensor)


def assign(variable: Any, values: np.ndarray[Any, Any]) -> None:
    """Put values of its own dtype into a variable, bit for bit."""
    tensor: Any = values
    if values.size == 0:
        return
    if keras.config.backend() == "torch" and values.dtype.name not in _NUMPY:
        torch = sys.modules["torch"]  # which knows the dtype, and not numpy's name for it
        plain = torch.from_numpy(np.ascontiguousarray(values).reshape(-1).view(np.uint8).copy())
        tensor = plain.view(getattr(torch, values.dtype.name)).reshape(values.shape)
    variable.assign(tensor)


def dtype_of(variable: Any) -> np.dtype[Any]:
    """The element type that a variable has in memory: PyTorch, for one, keeps uint32 as int64."""
    return _numpy_dtype(str(keras.backend.standardize_dtype(variable.value.dtype)))


def _of_torch(tensor: Any) -> np.ndarray[Any, Any]:
    dtype = _numpy_dtype(str(tensor.dtype).removeprefix("torch."))
    if tensor.numel() == 0:
        return np.empty(tuple(tensor.shape), dtype)
    flat = tensor.reshape(-1).view(sys.modules["torch"].uint8)
    plain: np.ndarray[Any, Any] = flat.numpy().view(dtype).reshape(tuple(tensor.shape))
    return plain


def _numpy_dtype(text: str) -> np.dtype[Any]:
    if text in _NUMPY:
        return np.dtype(text)
    import ml_dtypes  # Keras needs it, too

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, text))
    return dtype


_NUMPY = {
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64",
    "complex64", "complex128",
}  # fmt: skip


def register(registry: CodecRegistry) -> None:
    """Entry point of the group `ckpt_core.codecs`."""
    registry.add_tensor(KerasCodec(), keras.Variable)
