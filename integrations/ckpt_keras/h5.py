"""The format `keras`: the weights of a model as `model.save_weights` writes them, a `.weights.h5`.

As a state it is the tree of groups in the file: `layers/dense/vars/0`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import h5py
import ml_dtypes
import numpy as np

from ckpt_core import CkptError, CorruptionError, StateError, StorageBackend
from ckpt_core.backends.room import room_for
from ckpt_core.model import Buffer

__all__ = ["WeightsFile"]

_BFLOAT16 = "bfloat16"
_DEEPEST = 90


class WeightsFile(StorageBackend):
    """A `.weights.h5`, without the model that it is for: that has to be of the same layers to load it."""

    name = "keras"
    suffix: ClassVar[str] = ".weights.h5"
    framework: ClassVar[str] = "numpy"

    def save_checkpoint(self, data: Any, path: Path) -> dict[str, Any]:
        with h5py.File(path, "x") as file:
            _write(file, self.kept(data), "")
        return {"h5py": h5py.__version__}

    def load_checkpoint(self, path: Path, device: str | None = None) -> Any:
        return _load(path, mapped=False)

    def view_checkpoint(self, path: Path) -> Any:
        return _load(path, mapped=True)

    def kept(self, data: Any) -> dict[str, Any]:
        """The state itself, if it is dicts of arrays. Raises StateError."""
        if isinstance(data, Mapping) and isinstance(data.get("model"), Mapping) and "order" in data["model"]:
            raise StateError(
                "a checkpoint of a Keras training does not say how its model is built: load its weights into the "
                "model with ckpt_keras.load_weights(model, manager, ref), and call model.save_weights()",
                kind="format",
            )
        if not isinstance(data, Mapping) or not all(
            isinstance(key, str) and key and "/" not in key and key != "." for key in data
        ):
            raise StateError(
                "the format 'keras' holds dicts of arrays alone: select a part that is", kind="format"
            )
        return {key: item if _is_array(item) else self.kept(item) for key, item in data.items()}


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _write(group: Any, tree: Mapping[str, Any], where: str) -> None:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            _write(group.create_group(name), value, f"{where}{name}/")
            continue
        plain = value.view("V2") if value.dtype == ml_dtypes.bfloat16 else value
        dataset = group.create_dataset(name, data=plain)
        if plain is not value:
            dataset.attrs["dtype"] = _BFLOAT16


def _load(path: Path, *, mapped: bool) -> dict[str, Any]:
    try:
        with h5py.File(path, "r") as file:
            tree = _datasets(file, {file.id})
            whole = np.asarray(np.memmap(path, np.uint8, "c")) if mapped else None
            sizes = [each.nbytes for each in _leaves(tree) if whole is None or not _lies(each)]
            room = iter(room_for(sizes)) if mapped else (np.empty(size, np.uint8) for size in sizes)
            return _arrays(tree, whole, room)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, CkptError):
            raise
        raise CorruptionError(
            f"{path} is no HDF5 file of weights, or a damaged one: {error}", kind="document"
        ) from error


def _datasets(group: Any, seen: set[Any], depth: int = 0) -> dict[str, Any]:
    """The arrays in the file, each as large as it can be at most; none of them is read yet."""
    found: dict[str, Any] = {}
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):  # others lead to other files
            raise CorruptionError(f"{name!a} is a link to something else", kind="document")
        member = group[name]
        if member.id in seen or depth > _DEEPEST:  # a few groups within each other could be read for ever
            raise CorruptionError(f"{name!a} stands in the file more than once, or too deep", kind="document")
        seen.add(member.id)
        if isinstance(member, h5py.Group):
            found[name] = _datasets(member, seen, depth + 1)
        else:
            _check(member)
            found[name] = member
    return found


def _check(dataset: Any) -> None:
    if dataset.dtype.hasobject or (dataset.external and len(dataset.external)) or dataset.is_virtual:
        raise CorruptionError(f"{dataset.name!a} is no plain array in the file", kind="document")
    if dataset.nbytes > dataset.id.get_storage_size() and dataset.compression is None:
        raise CorruptionError(f"{dataset.name!a} claims more bytes than it has", kind="size")
    if dataset.compression is not None and dataset.nbytes > 1032 * dataset.id.get_storage_size():
        raise CorruptionError(f"{dataset.name!a} claims to expand to {dataset.nbytes} bytes", kind="size")


def _lies(dataset: Any) -> bool:
    """Whether its bytes lie in the file as they are."""
    return dataset.id.get_offset() is not None and dataset.nbytes > 0


def _leaves(tree: Mapping[str, Any]) -> Iterator[Any]:
    for member in tree.values():
        if isinstance(member, dict):
            yield from _leaves(member)
        else:
            yield member


def _arrays(tree: Mapping[str, Any], whole: Buffer | None, room: Iterator[Buffer]) -> dict[str, Any]:
    return {
        name: _arrays(member, whole, room) if isinstance(member, dict) else _array(member, whole, room)
        for name, member in tree.items()
    }


def _array(dataset: Any, whole: Buffer | None, room: Iterator[Buffer]) -> np.ndarray[Any, Any]:
    """An array as it lies in the file, if that is `whole` in memory, else read into the next of `room`."""
    if whole is not None and _lies(dataset):
        begin = dataset.id.get_offset()
        data = whole[begin : begin + dataset.nbytes]
    else:
        data = next(room)
        if data.size:
            dataset.read_direct(np.ndarray(dataset.shape, dataset.dtype, buffer=data.data))
    half = dataset.attrs.get("dtype") == _BFLOAT16 and dataset.dtype.itemsize == 2
    return np.ndarray(dataset.shape, ml_dtypes.bfloat16 if half else dataset.dtype, buffer=data.data)
