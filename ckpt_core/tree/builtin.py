"""Codecs for what every Python process has: numpy arrays, byte strings, and the standard library's values."""

from __future__ import annotations

import base64
import collections
import datetime as dt
import decimal
import fractions
import pathlib
import uuid
from collections.abc import Hashable
from typing import Any

import numpy as np

from ckpt_core.model import Buffer, TensorSpec
from ckpt_core.tree import dtypes
from ckpt_core.tree.codecs import CodecRegistry, ObjectCodec, UnsupportedValueError

__all__ = ["BytesCodec", "NumpyCodec", "register_builtin"]

_SEED = ("entropy", "spawn_key", "pool_size", "n_children_spawned")
_BIT_GENERATORS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64,
    )
}  # fmt: skip


class NumpyCodec:
    """numpy arrays of every dtype but objects and records, with ml_dtypes' among them."""

    name = "numpy"

    def spec(self, value: np.ndarray[Any, Any]) -> TensorSpec:
        if isinstance(value, np.ma.MaskedArray):
            raise UnsupportedValueError("a masked array would lose its mask: save .data and .mask")
        name = dtypes.name_of_numpy(value.dtype)
        if name is None:
            raise UnsupportedValueError(f"a numpy array of dtype {value.dtype} has no fixed bytes to store")
        return TensorSpec(name, tuple(value.shape))

    def identity(self, value: np.ndarray[Any, Any]) -> Hashable:
        if value.size == 0:
            return id(value)
        address = value.__array_interface__["data"][0]
        return ("host", address, value.shape, value.strides, value.dtype.str, value.dtype.name)

    def view(self, value: np.ndarray[Any, Any]) -> Buffer | None:
        return _bytes_of(value) if value.flags.c_contiguous else None

    def copy_into(self, value: np.ndarray[Any, Any], out: Buffer) -> None:
        np.ndarray(value.shape, value.dtype, buffer=out.data)[...] = value

    def wrap(self, spec: TensorSpec, data: Buffer) -> np.ndarray[Any, Any]:
        if spec.dtype == "F4":  # two values a byte on disk, one a byte in numpy
            data, dtype = _unpack_f4(data), dtypes.numpy_dtype("ml:float4_e2m1fn")
        else:
            dtype = dtypes.numpy_dtype(spec.dtype)
        try:
            return np.ndarray(spec.shape, dtype, buffer=data.data)
        except (TypeError, ValueError) as error:  # a shape from a file that no array can have
            raise UnsupportedValueError(f"numpy cannot hold shape {list(spec.shape)}: {error}") from None

    def destination(self, like: np.ndarray[Any, Any], spec: TensorSpec) -> Buffer | None:
        if like.flags.c_contiguous and like.flags.writeable and self.spec(like) == spec:
            return _bytes_of(like)
        return None

    def assign(self, like: np.ndarray[Any, Any], value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if not dtypes.fits(value, self.spec(like).dtype):
            raise UnsupportedValueError(f"its values do not fit in {like.dtype}")
        cast = value.astype(like.dtype, copy=False)
        if not like.flags.writeable:
            return cast
        like[...] = cast
        return like


class BytesCodec:
    """Byte strings too long to stand in the manifest."""

    def __init__(self, kind: type[bytes] | type[bytearray]) -> None:
        self.name = kind.__name__
        self._kind = kind

    def spec(self, value: bytes) -> TensorSpec:
        return TensorSpec("U8", (len(value),))

    def identity(self, value: bytes) -> Hashable:
        return id(value)

    def view(self, value: bytes) -> Buffer | None:
        return np.frombuffer(value, np.uint8) if len(value) else np.empty(0, np.uint8)

    def copy_into(self, value: bytes, out: Buffer) -> None:
        out[:] = np.frombuffer(value, np.uint8)

    def wrap(self, spec: TensorSpec, data: Buffer) -> bytes | bytearray:
        return self._kind(data.tobytes())

    def destination(self, like: bytes, spec: TensorSpec) -> Buffer | None:
        return None

    def assign(self, like: bytes, value: bytes) -> bytes:
        return value


def _bytes_of(array: np.ndarray[Any, Any]) -> Buffer:
    if array.size == 0:
        return np.empty(0, np.uint8)
    return np.ndarray((array.nbytes,), np.uint8, buffer=array.reshape(-1).view(np.uint8).data)


def _unpack_f4(data: Buffer) -> np.ndarray[Any, Any]:
    nibbles = np.empty(data.size * 2, np.uint8)
    nibbles[0::2] = data & 0x0F
    nibbles[1::2] = data >> 4
    return nibbles


def _numpy_scalar(value: np.generic) -> dict[str, str]:
    array = np.asarray(value)  # makes room for one character in an empty text
    name = dtypes.name_of_numpy(array.dtype)
    if name is None:
        raise UnsupportedValueError(f"a numpy scalar of dtype {value.dtype} has no fixed bytes to store")
    return {"dtype": name, "value": base64.b64encode(array.tobytes()).decode()}


def _numpy_scalar_from(plain: dict[str, str]) -> Any:
    return np.frombuffer(base64.b64decode(plain["value"]), dtypes.numpy_dtype(plain["dtype"]))[0]


def _generator(value: np.random.Generator) -> dict[str, Any]:
    return {"state": value.bit_generator.state, "seed": _seed(value.bit_generator)}


def _seed(bit_generator: np.random.BitGenerator) -> dict[str, Any] | None:
    """What `Generator.spawn` goes by, which is no part of the state."""
    sequence = bit_generator.seed_seq
    if type(sequence) is not np.random.SeedSequence:
        return None
    return {name: getattr(sequence, name) for name in _SEED}


def _generator_from(plain: dict[str, Any]) -> np.random.Generator:
    state, seed = plain["state"], plain["seed"]
    kind = _BIT_GENERATORS[state["bit_generator"]]
    bit_generator = kind() if seed is None else kind(np.random.SeedSequence(**seed))
    bit_generator.state = state
    return np.random.Generator(bit_generator)


def _random_state(value: np.random.RandomState) -> Any:
    return value.get_state(legacy=False)


def _random_state_from(plain: dict[str, Any]) -> np.random.RandomState:
    value = np.random.RandomState()
    value.set_state(plain)
    return value


def _deque(value: collections.deque[Any]) -> dict[str, Any]:
    return {"items": list(value), "maxlen": value.maxlen}


def register_builtin(registry: CodecRegistry) -> None:
    """Add the codecs of this module to `registry`."""
    registry.add_tensor(NumpyCodec(), np.ndarray)
    registry.add_tensor(BytesCodec(bytes), bytes)
    registry.add_tensor(BytesCodec(bytearray), bytearray)
    for codec in (
        ObjectCodec("numpy.scalar", np.generic, _numpy_scalar, _numpy_scalar_from),
        ObjectCodec("numpy.Generator", np.random.Generator, _generator, _generator_from),
        ObjectCodec("numpy.RandomState", np.random.RandomState, _random_state, _random_state_from),
        ObjectCodec("deque", collections.deque, _deque, lambda p: collections.deque(p["items"], p["maxlen"])),
        ObjectCodec("set", set, _sorted_members, set),
        ObjectCodec("frozenset", frozenset, _sorted_members, frozenset),
        ObjectCodec("range", range, lambda r: [r.start, r.stop, r.step], lambda p: range(*p)),
        ObjectCodec("slice", slice, lambda s: [s.start, s.stop, s.step], lambda p: slice(*p)),
        ObjectCodec("datetime", dt.datetime, dt.datetime.isoformat, dt.datetime.fromisoformat),
        ObjectCodec("date", dt.date, dt.date.isoformat, dt.date.fromisoformat),
        ObjectCodec("time", dt.time, dt.time.isoformat, dt.time.fromisoformat),
        ObjectCodec(
            "timedelta",
            dt.timedelta,
            lambda t: [t.days, t.seconds, t.microseconds],
            lambda p: dt.timedelta(*p),
        ),
        ObjectCodec("uuid", uuid.UUID, str, uuid.UUID),
        ObjectCodec("decimal", decimal.Decimal, str, decimal.Decimal),
        ObjectCodec(
            "fraction",
            fractions.Fraction,
            lambda f: [f.numerator, f.denominator],
            lambda p: fractions.Fraction(*p),
        ),
        ObjectCodec("purepath", pathlib.PurePosixPath, str, pathlib.PurePosixPath),
        ObjectCodec("path", pathlib.PosixPath, str, pathlib.Path),
    ):
        registry.add_object(codec)


def _sorted_members(members: set[Any] | frozenset[Any]) -> list[Any]:
    """In an order that does not depend on hashing, so that equal sets give equal bytes."""
    return sorted(members, key=lambda member: (type(member).__name__, repr(member)))
