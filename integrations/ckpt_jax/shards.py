"""Between one array in host memory and the shards of a `jax.Array`, whatever its sharding.

Which bytes stand for which element is `codec.py`'s; which part of a checkpoint is read, `loading.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

__all__ = ["Box", "box_of", "gather", "place", "prefetch", "whole_view"]

HostArray = np.ndarray[Any, Any]

Box = tuple[tuple[int, int], ...]
"""A part of an array: where it begins and ends along each axis."""


def box_of(index: Sequence[slice], shape: Sequence[int]) -> Box:
    """The box that a shard's index stands for. JAX leaves out the ends of an axis that is not cut."""
    return tuple(axis.indices(length)[:2] for axis, length in zip(index, shape, strict=True))


def whole_view(value: jax.Array) -> HostArray | None:
    """The array in host memory without a copy, if one shard holds all of it there; else None.

    While the view lives, its buffer does too: a computation that is given it to reuse gets a copy.
    """
    if not (value.is_fully_replicated and _is_on_host(value)):
        return None
    # Through a view of the shard, not of the array itself, which would remember it as long as it lives.
    view = np.asarray(value.addressable_data(0))
    return view if view.flags.c_contiguous else None


def gather(value: jax.Array, out: HostArray) -> None:
    """Copies every shard straight to its place in `out`, which has the shape and dtype of the whole.

    Of an array that lives on several processes, too, but only where each of them holds all of it.
    """
    if value.is_fully_replicated:
        out[...] = np.asarray(value.addressable_data(0))
        return
    for shard in value.addressable_shards:
        if shard.replica_id == 0:
            out[shard.index] = np.asarray(shard.data)


def prefetch(values: Sequence[jax.Array]) -> None:
    """Starts the copies from all devices at once, so that the staging that follows does not wait for each."""
    for value in values:
        if not _is_on_host(value):
            for shard in value.addressable_shards:
                if shard.replica_id == 0:
                    shard.data.copy_to_host_async()


def _is_on_host(value: jax.Array) -> bool:
    """The devices of one array are of one kind."""
    device: Any = next(iter(value.sharding.device_set))
    return bool(device.platform == "cpu")


def place(like: Any, read: Callable[[Box], HostArray]) -> jax.Array:
    """An array with the shape and sharding of `like`, of which only what local devices hold is read.

    `like` is a `jax.Array` or a `jax.ShapeDtypeStruct`. Devices that hold the same part share one reading.
    """
    shape = tuple(like.shape)
    sharding = _sharding_of(like)
    if sharding is None:
        whole: jax.Array = jax.device_put(read(tuple((0, length) for length in shape)))
        return whole
    boxes: dict[Box, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        boxes.setdefault(box_of(index or (), shape), []).append(device)
    kind = sharding.memory_kind
    arrays = []
    for box, devices in sorted(boxes.items(), key=lambda item: item[0]):  # rows together
        part = read(box)
        for device in devices:
            where = jax.sharding.SingleDeviceSharding(device, memory_kind=kind)
            arrays.append(jax.device_put(part, where))
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _sharding_of(like: Any) -> jax.sharding.Sharding | None:
    """Where `like` says that an array must be; None where JAX may choose."""
    sharding = like.sharding
    if isinstance(like, jax.Array) and not like.committed:
        return None  # one that is pinned to its device could not be used together with others any more
    return sharding if isinstance(sharding, jax.sharding.Sharding) else None
