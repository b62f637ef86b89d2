"""Names of element types, as the disk format writes them, and what they mean to numpy.

The names of safetensors where it has one; `C128` and numpy's own type strings for what it lacks.
Source: safetensors' list of dtypes; numpy's `__array_interface__` type strings.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from ckpt_core.errors import FormatError
from ckpt_core.model import TensorSpec

__all__ = [
    "SAFETENSORS_BITS",
    "alignment",
    "can_cast",
    "family",
    "fits",
    "name_of_numpy",
    "nbytes",
    "numpy_dtype",
    "resolution",
    "stored_as",
]

SAFETENSORS_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8, "F4": 4,
}  # fmt: skip
"""Every dtype a pack's header may carry, with the bits of one value."""

_OWN_BITS = {"C32": 32, "C128": 128}
_NUMPY = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8", "C128": "<c16",
}  # fmt: skip
_ML_DTYPES = {
    "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
    "C32": "complex32",
}  # fmt: skip
_FROM_NUMPY = {text: name for name, text in _NUMPY.items()}
_ML_KINDS = ("complex", "integer")  # told by the first three letters, as in `bcomplex32`, `uint4`
_FROM_ML = {text: name for name, text in _ML_DTYPES.items()}
_TYPE_STRING = re.compile(
    r"[<>|]([biufcmMSU])([1-9]\d{0,8})(\[(\d{1,9})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?", re.ASCII
)
_LONGEST = {"f": 8, "c": 16}  # longer ones are other bits on other machines, under the same name
_ML_NAME = re.compile(r"ml:[a-z][a-z0-9_]{1,31}")


def _ml_dtypes() -> ModuleType:
    import ml_dtypes

    return ml_dtypes


@lru_cache(maxsize=256)  # asked for every tensor of every save
def name_of_numpy(dtype: np.dtype[Any]) -> str | None:
    """The format's name for a numpy dtype; None when its values cannot be stored: objects, records, and
    `longdouble`, whose bits depend on the machine."""
    if dtype.hasobject or dtype.fields is not None or dtype.subdtype is not None or dtype.itemsize == 0:
        return None
    if dtype.kind == "V" or type(dtype).__module__ == "ml_dtypes" or dtype.type.__module__ == "ml_dtypes":
        if not hasattr(_ml_dtypes(), dtype.name):
            return None
        return _FROM_ML.get(dtype.name, f"ml:{dtype.name}")
    if dtype.kind not in "biufcmMSU" or dtype.itemsize > _LONGEST.get(dtype.kind, dtype.itemsize):
        return None
    return _FROM_NUMPY.get(dtype.str, dtype.str)


@lru_cache(256)
def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a name. Raises FormatError for a name that numpy has nothing for."""
    if name in _NUMPY:
        return np.dtype(_NUMPY[name])
    ml_name = _ML_DTYPES.get(name) or (name[3:] if _ML_NAME.fullmatch(name) else None)
    scalar = getattr(_ml_dtypes(), ml_name, None) if ml_name is not None else None
    if isinstance(scalar, type) and issubclass(scalar, np.generic):
        return np.dtype(scalar)
    match = _TYPE_STRING.fullmatch(name)
    if match and int(match[2]) <= _LONGEST.get(match[1], int(match[2])):
        try:
            return np.dtype(name)
        except (TypeError, ValueError):
            pass
    raise FormatError(f"element type {name!r} is not known to numpy here", kind="dtype", dtype=name)


@lru_cache(256)  # asked some times for each of thousands of tensors; bounded, as names may come from a file
def _bits(name: str) -> int:
    bits = SAFETENSORS_BITS.get(name) or _OWN_BITS.get(name)
    return bits if bits is not None else numpy_dtype(name).itemsize * 8


def nbytes(spec: TensorSpec) -> int:
    """Bytes of a whole tensor in C order. Raises FormatError where packed values leave half a byte."""
    bits = math.prod(spec.shape) * _bits(spec.dtype)
    if bits % 8:
        raise FormatError(f"{spec.dtype} of shape {list(spec.shape)} does not fill whole bytes", kind="dtype")
    return bits // 8


@lru_cache(256)
def alignment(name: str) -> int:
    """Bytes by which the first value of a tensor must be aligned: its item size, 8 at the most."""
    size = max(_bits(name) // 8, 1)
    return min(size & -size, 8)


def stored_as(spec: TensorSpec) -> TensorSpec:
    """What a pack's header says of a tensor: itself, or plain bytes where safetensors lacks the dtype."""
    return spec if spec.dtype in SAFETENSORS_BITS else TensorSpec("U8", (nbytes(spec),))


def family(name: str) -> str:
    """`bool`, `integer`, `float`, `complex` or the name itself for what converts to nothing else."""
    if name == "BOOL":
        return "bool"
    if name in ("C32", "C64", "C128"):
        return "complex"
    if name in SAFETENSORS_BITS:
        return "integer" if name[0] in "UI" else "float"
    if name.startswith("ml:"):
        return next((kind for kind in _ML_KINDS if kind[:3] in name), "float")
    return {"i": "integer", "u": "integer", "f": "float", "c": "complex"}.get(name[1:2], name)


def resolution(dtype: np.dtype[Any]) -> float:
    """The distance from 1 to the next larger number of a floating-point dtype."""
    return float(_ml_dtypes().finfo(dtype).eps)


def can_cast(saved: str, wanted: str) -> bool:
    """Whether `like=` may convert: only within a family, as `F32` to `BF16`, never float to integer.

    Among integers the values decide in the end: see `fits`.
    """
    return saved == wanted or family(saved) == family(wanted)


def fits(values: np.ndarray[Any, Any], wanted: str) -> bool:
    """Whether these values may become `wanted`: an integer that would wrap around may not."""
    if family(wanted) != "integer" or not values.size:
        return True
    limits = _ml_dtypes().iinfo(numpy_dtype(wanted))
    if values.dtype.kind not in "iu":  # ml_dtypes' narrow integers know no minimum
        values = values.astype(np.int64)
    return bool(limits.min <= int(values.min()) and int(values.max()) <= limits.max)
