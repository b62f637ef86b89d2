"""How torch tensors become bytes and come back. Registered on first sight of a torch object."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ckpt_core.model import TensorSpec
from ckpt_core.tree import ObjectCodec, UnsupportedValueError, dtypes

if TYPE_CHECKING:
    from ckpt_core.model import Buffer
    from ckpt_core.tree import CodecRegistry

__all__ = ["TorchCodec", "register"]

_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32",
    "int32": "I32", "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16",
    "float32": "F32", "float64": "F64", "complex32": "C32", "complex64": "C64", "complex128": "C128",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0", "float4_e2m1fn_x2": "F4",
}  # fmt: skip
_NAME_OF = {getattr(torch, text): name for text, name in _NAMES.items() if hasattr(torch, text)}
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_DTYPE_OF = {name: dtype for dtype, name in _NAME_OF.items()}


class TorchCodec:
    """Dense tensors and parameters of every dtype with a fixed size, on any device."""

    name = "torch"

    def spec(self, value: torch.Tensor) -> TensorSpec:
        fault = _fault(value)
        if fault:
            raise UnsupportedValueError(fault)
        name = _NAME_OF.get(value.dtype)
        if name is None:
            raise UnsupportedValueError(f"torch's {value.dtype} has no fixed bytes to store")
        shape = tuple(value.shape)
        if name == "F4":  # torch counts pairs of values, the format counts values
            if not shape:
                raise UnsupportedValueError("float4 values without an axis have no shape to store: add one")
            shape = (*shape[:-1], shape[-1] * 2)
        return TensorSpec(name, shape)

    def identity(self, value: torch.Tensor) -> Hashable:
        if value.numel() == 0:
            return id(value)
        return (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype,
                value.is_conj(), value.is_neg())  # fmt: skip

    def view(self, value: torch.Tensor) -> Buffer | None:
        if not value.is_cpu or not value.is_contiguous() or value.is_conj() or value.is_neg():
            return None
        return _bytes_of(value.detach())

    def copy_into(self, value: torch.Tensor, out: Buffer) -> None:
        plain = value.detach()
        if plain.numel():
            _over(out, plain.dtype, plain.shape).copy_(plain)

    def wrap(self, spec: TensorSpec, data: Buffer) -> torch.Tensor:
        spec, data = _as_torch_has_it(spec, data)
        dtype = _DTYPE_OF.get(spec.dtype)
        if dtype is None:
            raise UnsupportedValueError(
                f'torch has no {spec.dtype}: load this tensor as a numpy array with framework="numpy"'
            )
        shape = spec.shape if spec.dtype != "F4" else (*spec.shape[:-1], spec.shape[-1] // 2)
        try:
            return _over(data, dtype, shape)
        except (OverflowError, RuntimeError, TypeError) as error:  # a shape from a file none can have
            raise UnsupportedValueError(f"torch cannot hold shape {list(spec.shape)}: {error}") from None

    def destination(self, like: torch.Tensor, spec: TensorSpec) -> Buffer | None:
        return self.view(like) if self.spec(like) == spec else None

    def assign(self, like: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        wanted = self.spec(like).dtype
        if dtypes.family(wanted) == "integer" and not dtypes.fits(value.numpy(), wanted):
            raise UnsupportedValueError(f"its values do not fit in {like.dtype}")
        try:
            with torch.no_grad():
                like.copy_(value)
        except RuntimeError as error:  # an expanded tensor, or a cast that torch does not have
            raise UnsupportedValueError(f"torch cannot copy into it: {error}") from None
        return like


def _fault(value: torch.Tensor) -> str | None:
    """Why a tensor has no plain bytes; None where it has."""
    if (
        type(value) in _PLAIN
        and value.layout is torch.strided
        and not (value.is_nested or value.is_quantized or value.is_meta)
    ):
        return None  # nearly all of them
    if type(value).__name__ == "DTensor":
        return "a distributed tensor is saved through torch.distributed.checkpoint"
    if torch.nn.parameter.is_lazy(value):
        return "a lazy parameter has no values yet: run the module once before saving"
    if value.is_nested or value.layout != torch.strided:
        what = "nested" if value.is_nested else str(value.layout)
    elif value.is_quantized or value.is_meta:
        what = "meta" if value.is_meta else "quantized"
    elif hasattr(value, "__tensor_flatten__"):
        what = type(value).__name__
    else:
        return None
    return f"a {what} tensor has no plain bytes: save its dense parts"


def _as_torch_has_it(spec: TensorSpec, data: Buffer) -> tuple[TensorSpec, Buffer]:
    """Numbers of the other byte order turned round, and 4-bit floats that lie in a byte each put together in pairs."""
    if spec.dtype.startswith(">"):
        native = dtypes.numpy_dtype(spec.dtype).newbyteorder("=")
        name = dtypes.name_of_numpy(native)
        if name in _DTYPE_OF:
            turned = np.ndarray((data.size // native.itemsize,), spec.dtype, data.data).astype(native)
            return TensorSpec(name, spec.shape), turned.view(np.uint8)
    if spec.dtype == "ml:float4_e2m1fn" and "F4" in _DTYPE_OF and spec.shape and spec.shape[-1] % 2 == 0:
        return TensorSpec("F4", spec.shape), np.bitwise_or(data[0::2] & 0x0F, data[1::2] << 4, dtype=np.uint8)
    return spec, data


def _bytes_of(tensor: torch.Tensor) -> Buffer:
    if tensor.numel() == 0:
        return np.empty(0, np.uint8)
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _over(data: Buffer, dtype: torch.dtype, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    if data.size == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(data).view(dtype).reshape(shape)


def register(registry: CodecRegistry) -> None:
    """Entry point of the group `ckpt_core.codecs`."""
    registry.add_tensor(TorchCodec(), torch.Tensor)
    registry.add_object(ObjectCodec("torch.device", torch.device, str, torch.device))
    registry.add_object(ObjectCodec("torch.dtype", torch.dtype, _dtype_name, _dtype_named))


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype_named(name: Any) -> torch.dtype:
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no dtype {name!r}")
    return dtype
