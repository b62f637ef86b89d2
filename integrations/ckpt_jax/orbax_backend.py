"""The format `orbax`: a folder as Orbax's PyTree handler writes it, of arrays, numbers and texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from ckpt_core import StateError, StorageBackend

__all__ = ["OrbaxBackend"]

_METADATA = "_METADATA"
_ITEM = "default"  # where a CheckpointManager of Orbax puts its only item


class OrbaxBackend(StorageBackend):
    """A folder that `PyTreeCheckpointer().restore` reads. Tuples come back as lists."""

    name = "orbax"
    framework: ClassVar[str] = "numpy"

    def save_checkpoint(self, data: Any, path: Path) -> dict[str, Any]:
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), self.kept(data))
        return {"orbax": ocp.__version__}

    def load_checkpoint(self, path: Path, device: str | None = None) -> Any:
        folder = (path if (path / _METADATA).is_file() else path / _ITEM).absolute()
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(folder).item_metadata.tree
            state = checkpointer.restore(folder, restore_args=jax.tree.map(_as_numpy, tree))
        return state if device is None else jax.device_put(state, _device(device))

    def recognises(self, path: Path) -> bool:
        return (path / _METADATA).is_file() or (path / _ITEM / _METADATA).is_file()

    def kept(self, data: Any) -> Any:
        """The state itself, if Orbax can hold it. Raises StateError, which names what it cannot."""
        return _pytree(data, "")


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
    array = type(metadata).__name__ == "ArrayMetadata"
    return ocp.RestoreArgs(restore_type=np.ndarray) if array else ocp.RestoreArgs()


def _device(name: str) -> Any:
    kind, _, number = name.partition(":")
    return jax.devices(kind)[int(number or 0)]
