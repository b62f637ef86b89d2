"""The format `orbax`: a folder as Orbax's PyTree handler writes it, of arrays, numbers and texts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, ClassVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from ckpt_core import CkptError, CorruptionError, FormatError, StateError, StorageBackend
from ckpt_core.backends.room import room_for
from ckpt_core.model import Buffer

__all__ = ["OrbaxBackend"]

_METADATA = "_METADATA"
_ITEM = "default"  # where a CheckpointManager of Orbax puts its only item
_EXPANSION = 32768  # what zstd can make of a byte at the most: 128 KiB of one value are four bytes
_GROUP = 32 << 20  # read at once; and in one file, which Orbax has in memory before it writes it


class OrbaxBackend(StorageBackend):
    """A folder that `PyTreeCheckpointer().restore` reads. Tuples come back as lists."""

    name = "orbax"
    framework: ClassVar[str] = "numpy"

    def save_checkpoint(self, data: Any, path: Path) -> dict[str, Any]:
        with _checkpointer() as checkpointer:
            args = ocp.args.PyTreeSave(self.kept(data), ocdbt_target_data_file_size=_GROUP)
            checkpointer.save(path.absolute(), args=args)
        return {"orbax": ocp.__version__}

    def load_checkpoint(self, path: Path, device: str | None = None) -> Any:
        with _opened(path) as (restore, _):
            state = restore(None)
        return state if device is None else jax.device_put(state, _device(device))

    def view_checkpoint(self, path: Path) -> Any:
        with _opened(path) as (restore, tree):
            leaves, structure = jax.tree.flatten(tree)
            room = iter(room_for([_nbytes(leaf) for leaf in leaves if _is_array(leaf)]))
            found: list[Any] = []
            for group in _groups(leaves):
                wanted = [leaf if number in group else ocp.PLACEHOLDER for number, leaf in enumerate(leaves)]
                read = jax.tree.leaves(restore(jax.tree.unflatten(structure, wanted)))
                found += [_moved(read[at], room) if _is_array(leaves[at]) else read[at] for at in group]
                del read  # before the next are read
        return jax.tree.unflatten(structure, found)

    def recognises(self, path: Path) -> bool:
        return (path / _METADATA).is_file() or (path / _ITEM / _METADATA).is_file()

    def kept(self, data: Any) -> Any:
        """The state itself, if Orbax can hold it. Raises StateError, which names what it cannot."""
        return _pytree(data, "")


class _Scalars(ocp.type_handlers.ScalarHandler):  # type: ignore[misc]
    """Numbers, of which Orbax reads all that stands under their names, and looks then whether it is one."""

    async def metadata(self, infos: Sequence[Any]) -> Any:
        """With the shapes that they have in the file."""
        found = await super(ocp.type_handlers.ScalarHandler, self).metadata(infos)
        return [
            dataclasses.replace(number, shape=array.shape)
            for number, array in zip(await super().metadata(infos), found, strict=True)
        ]


def _checkpointer() -> ocp.Checkpointer:
    """Orbax's own, whose arrays are not copied before they are written."""
    own = {
        "scalar": _Scalars(),
        "np.ndarray": ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False),
    }
    handlers = []
    for kind in ocp.type_handlers.supported_types():
        handler = ocp.type_handlers.get_type_handler(kind)
        handlers.append((kind, own.get(handler.typestr(), handler)))
    registry = ocp.type_handlers.create_type_handler_registry(*handlers)
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Callable[[Any], Any], Any]]:
    """What restores (some of) a folder, and what is in it, once its files have borne out what it claims."""
    folder = (path if (path / _METADATA).is_file() else path / _ITEM).absolute()
    if not (folder / _METADATA).is_file():
        raise FormatError(f"{path} is no folder of Orbax: it has no {_METADATA}", kind="folder")
    try:
        with _checkpointer() as checkpointer:
            found = checkpointer.metadata(folder).item_metadata
            if found is None:
                raise ValueError("it does not hold what its metadata names")
            tree = found.tree
            _check(folder, jax.tree.leaves(tree))
            args = jax.tree.map(_as_numpy, tree)
            yield lambda item: checkpointer.restore(folder, item=item, restore_args=args), tree
    except (CkptError, MemoryError):
        raise
    except Exception as error:  # what Orbax and TensorStore make of damage is manifold
        raise CorruptionError(f"{path} is a damaged folder of Orbax: {error}", kind="document") from error


def _check(folder: Path, leaves: Sequence[Any]) -> None:
    claimed = 0
    for leaf in leaves:
        name = PurePath(leaf.name)
        if name.is_absolute() or ".." in name.parts:
            raise CorruptionError(f"{folder} names {leaf.name!a}, which is not in it", kind="document")
        if _is_number(leaf) and leaf.shape != ():
            raise CorruptionError(
                f"{leaf.name!a} in {folder} is no number, as it has a shape", kind="document"
            )
        if _is_array(leaf):
            chunk = leaf.storage.chunk_shape if leaf.storage and leaf.storage.chunk_shape else leaf.shape
            whole = [
                -(-length // max(1, part)) * part for length, part in zip(leaf.shape, chunk, strict=True)
            ]
            claimed += math.prod(whole) * np.dtype(leaf.dtype).itemsize
    present = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if claimed > present * _EXPANSION:
        raise CorruptionError(
            f"{folder} claims {claimed} bytes of arrays, which its {present} cannot hold", kind="size"
        )


def _is_array(metadata: Any) -> bool:
    return type(metadata).__name__ == "ArrayMetadata"


def _is_number(metadata: Any) -> bool:
    return type(metadata).__name__ == "ScalarMetadata"


def _nbytes(metadata: Any) -> int:
    return int(math.prod(metadata.shape) * np.dtype(metadata.dtype).itemsize)


def _groups(leaves: Sequence[Any]) -> Iterator[range]:
    """Runs of leaves of so many bytes at most, or of one array."""
    begin, weight = 0, 0
    for number, leaf in enumerate(leaves):
        nbytes = _nbytes(leaf) if _is_array(leaf) else 0
        if weight and weight + nbytes > _GROUP:
            yield range(begin, number)
            begin, weight = number, 0
        weight += nbytes
    yield range(begin, len(leaves))


def _moved(array: Any, kept: Iterator[Buffer]) -> np.ndarray[Any, Any]:
    """An array with its bytes in the next memory that is kept for one."""
    room = next(kept)
    if not isinstance(array, np.ndarray) or array.nbytes != room.nbytes:
        raise CorruptionError("an array is not of the size that it has in the metadata", kind="size")
    moved: np.ndarray[Any, Any] = np.ndarray(array.shape, array.dtype, buffer=room.data)
    moved[...] = array
    return moved


def _pytree(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        odd = next((key for key in value if not isinstance(key, str)), None)
        if odd is not None:
            raise StateError(
                f"Orbax's folders have no key {odd!r} as at {path or 'the top'}", kind="format", path=path
            )
        return {key: _pytree(item, f"{path}/{key}".lstrip("/")) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_pytree(item, f"{path}/{number}".lstrip("/")) for number, item in enumerate(value)]
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, np.ndarray):
        return value
    raise StateError(
        f"Orbax's folders cannot hold the {type(value).__name__} at {path}: select a part without it",
        kind="format",
        path=path,
    )


def _as_numpy(metadata: Any) -> ocp.RestoreArgs:
    return ocp.RestoreArgs(restore_type=np.ndarray) if _is_array(metadata) else ocp.RestoreArgs()


def _device(name: str) -> Any:
    kind, _, number = name.partition(":")
    return jax.devices(kind)[int(number or 0)]
