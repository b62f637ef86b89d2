"""How JAX arrays and random keys become bytes and come back. Registered on first sight of a JAX object.

Trees of other libraries' classes are `pytrees.py`'s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_core.model import TensorSpec
from ckpt_core.tree import ObjectCodec, UnsupportedValueError, dtypes
from ckpt_core.tree import registry as _registry
from ckpt_core.tree.builtin import NumpyCodec
from ckpt_jax.shards import Box, HostArray, gather, place, whole_view

if TYPE_CHECKING:
    from ckpt_core.model import Buffer
    from ckpt_core.tree import CodecRegistry

__all__ = ["Held", "JaxCodec", "exact", "is_key", "place_host", "register", "to_dtype"]

_host = NumpyCodec()


class JaxCodec:
    """`jax.Array`s of every dtype, on any devices. In `like=`, a `jax.ShapeDtypeStruct` stands for one."""

    name = "jax"

    def spec(self, value: Any) -> TensorSpec:
        fault = _fault(value)
        if fault:
            raise UnsupportedValueError(fault)
        name = dtypes.name_of_numpy(np.dtype(value.dtype))
        if name is None:
            raise UnsupportedValueError(f"JAX's {value.dtype} has no fixed bytes to store")
        return TensorSpec(name, tuple(value.shape))

    def identity(self, value: Any) -> Hashable:
        if isinstance(value, jax.ShapeDtypeStruct):
            raise UnsupportedValueError("a ShapeDtypeStruct has no values: it can only stand in like=")
        return id(value)

    def view(self, value: jax.Array) -> Buffer | None:
        whole = whole_view(value)
        return None if whole is None else _host.view(whole)

    def copy_into(self, value: jax.Array, out: Buffer) -> None:
        gather(value, np.ndarray(value.shape, value.dtype, buffer=out.data))

    def wrap(self, spec: TensorSpec, data: Buffer) -> jax.Array:
        host = _host.wrap(spec, data)
        host = host.astype(host.dtype.newbyteorder("="), copy=False)
        with exact(host.dtype):
            try:
                array: jax.Array = jax.device_put(host)
            except (TypeError, jax.errors.JaxRuntimeError) as error:
                # A date, a text, or a number that no accelerator has; not a device without memory.
                if isinstance(error, jax.errors.JaxRuntimeError) and "dtype" not in str(error):
                    raise
                raise UnsupportedValueError(
                    f'JAX has no {spec.dtype}: load this tensor as a numpy array with framework="numpy"'
                ) from None
        return array

    def destination(self, like: Any, spec: TensorSpec) -> Buffer | None:
        return None

    def assign(self, like: Any, value: jax.Array) -> jax.Array:
        return place_host(like, np.asarray(value))


@dataclass(frozen=True, slots=True)
class Held:
    """An array that is saved by reference: nobody can change it, and a view keeps its memory from being reused."""

    array: jax.Array


class _HeldCodec(JaxCodec):
    """Arrays that are not copied before training goes on, where they lie in the host's memory as they are."""

    def spec(self, value: Any) -> TensorSpec:
        return super().spec(value.array)

    def identity(self, value: Any) -> Hashable:
        return super().identity(value.array)

    def view(self, value: Any) -> Buffer | None:
        return super().view(value.array)

    def copy_into(self, value: Any, out: Buffer) -> None:
        super().copy_into(value.array, out)

    def hold(self, value: Any) -> Buffer | None:
        return super().view(value.array)


# Not by the entry point, which is asked for JAX's own types. What it saves, either of the two can load.
_registry.add_tensor(_HeldCodec(), Held)


def place_host(like: Any, host: HostArray) -> jax.Array:
    """An array of these values, in the dtype and where `like` is. Raises UnsupportedValueError."""

    def part(box: Box) -> HostArray:
        return to_dtype(host[tuple(slice(*ends) for ends in box)], np.dtype(like.dtype))

    with exact(np.dtype(like.dtype)):
        return place(like, part)


def to_dtype(values: HostArray, dtype: np.dtype[Any]) -> HostArray:
    """The same numbers in another dtype of their family. Raises UnsupportedValueError if they do not fit."""
    if values.dtype == dtype:
        return values
    name = dtypes.name_of_numpy(dtype)
    if name is None or not dtypes.fits(values, name):
        raise UnsupportedValueError(f"its values do not fit in {dtype}")
    return values.astype(dtype)


def is_key(value: object) -> bool:
    """Whether `value` is an array of typed random keys, or stands for one."""
    if not isinstance(value, (jax.Array, jax.ShapeDtypeStruct)) or isinstance(value.dtype, np.dtype):
        return False
    return bool(jnp.issubdtype(value.dtype, jax.dtypes.prng_key))


def register(registry: CodecRegistry) -> None:
    """Entry point of the group `ckpt_core.codecs`."""
    registry.add_tensor(JaxCodec(), jax.Array, jax.ShapeDtypeStruct, jax.core.Tracer)
    # JAX has no public name for the type of its keys; an array of none costs nothing to make.
    keys = type(jax.random.wrap_key_data(jnp.empty((0, 2), jnp.uint32), impl="threefry2x32"))
    registry.add_object(ObjectCodec("jax.key", keys, _encode_key, _decode_key))


def _encode_key(key: jax.Array) -> dict[str, Any]:
    if key.is_deleted():
        raise UnsupportedValueError(_DELETED)
    implementation = jax.random.key_impl(key)
    if not isinstance(implementation, str):
        raise UnsupportedValueError(f"its random generator {implementation} has no name to store it under")
    return {"impl": implementation, "data": jax.random.key_data(key)}


def _decode_key(plain: dict[str, Any]) -> jax.Array:
    key: jax.Array = jax.random.wrap_key_data(plain["data"], impl=str(plain["impl"]))
    return key


_DELETED = (
    "its buffer is gone, because it was given to a jitted function that reuses it (donate_argnums): "
    "save what that function returned"
)


def _fault(value: Any) -> str | None:
    """Why an array has no bytes to store; None where it has."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return None
    if isinstance(value, jax.core.Tracer):
        return "it is traced, not an array: save outside of jit, grad and vmap"
    if value.is_deleted():
        return _DELETED
    if not value.is_fully_replicated and not value.is_fully_addressable:
        return "parts of it are on other processes: only what each process holds whole can be saved yet"
    return None


def exact(dtype: np.dtype[Any]) -> contextlib.AbstractContextManager[Any]:
    """JAX cuts values of 64 bits down to 32 unless told otherwise. A checkpoint gives back what it was given."""
    wide = dtype.itemsize >= 8 and dtype != np.complex64
    return jax.enable_x64(True) if wide else contextlib.nullcontext()
