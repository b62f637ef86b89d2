"""The format `dcp`: a folder of torch.distributed.checkpoint, written and read by one process.

Its metadata is a pickle, and values that are no tensors are files of torch.save. Neither is unpickled freely here: of
the one only the classes that describe a checkpoint are made, of the others what `weights_only` allows.
"""

from __future__ import annotations

import enum
import io
import math
import os
import pickle
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.checkpoint.state_dict_saver import save

from ckpt_core import CkptError, CorruptionError, FormatError, StateError, StorageBackend
from ckpt_core.backends.parts import on_device
from ckpt_core.backends.room import room_for
from ckpt_core.tree import flatten, is_file_name, registry
from ckpt_torch.backend import natural, restored

__all__ = ["DistributedBackend"]

_METADATA = ".metadata"
_LIMIT = 1 << 30
_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "MetadataIndex",
        "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "collections": ("OrderedDict",),
    "pathlib": ("Path", "PosixPath", "PurePosixPath"),
    "pathlib._local": ("Path", "PosixPath", "PurePosixPath"),
}  # fmt: skip


class DistributedBackend(StorageBackend):
    """A folder that `torch.distributed.checkpoint.load` reads. Reads those that any number of processes wrote."""

    name = "dcp"
    framework: ClassVar[str] = "torch"

    def save_checkpoint(self, data: Any, path: Path) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise StateError("the format 'dcp' holds dicts: export a part that is one", kind="format")
        with _quiet():
            save(natural(flatten(data, registry)), storage_writer=FileSystemWriter(path), no_dist=True)
        return {"torch": str(torch.__version__)}

    def load_checkpoint(self, path: Path, device: str | None = None) -> Any:
        return on_device(_load(path, _fresh), device)

    def view_checkpoint(self, path: Path) -> Any:
        return _load(path, _in_room)

    def recognises(self, path: Path) -> bool:
        return (path / _METADATA).is_file() and any(path.glob("*.distcp"))


Tensors = Callable[[Sequence[TensorStorageMetadata]], list[torch.Tensor]]


def _load(path: Path, tensors: Tensors) -> Any:
    state: dict[str, Any] = {}
    try:
        reader = _Reader(path)
        reader.read_metadata()  # torch would go on without
        with _quiet():
            _load_state_dict(state, storage_reader=reader, planner=_Planner(tensors), no_dist=True)
    except (CheckpointException, Exception) as error:  # torch's own is no Exception
        raise _told(path, error) from error
    return restored(state)


def _fresh(described: Sequence[TensorStorageMetadata]) -> list[torch.Tensor]:
    return [torch.empty(each.size, dtype=each.properties.dtype) for each in described]


def _in_room(described: Sequence[TensorStorageMetadata]) -> list[torch.Tensor]:
    """Tensors that need not fit into memory: torch reads into them what it has of one after the other."""
    room = room_for([math.prod(each.size) * each.properties.dtype.itemsize for each in described])
    return [
        torch.from_numpy(data).view(each.properties.dtype).reshape(each.size)
        for data, each in zip(room, described, strict=True)
    ]


class _Reader(FileSystemReader):
    """Believes of the metadata only what the files bear out."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        folder = Path(self.path)
        data = (folder / _METADATA).read_bytes() if (folder / _METADATA).stat().st_size < _LIMIT else b""
        metadata = _Unpickler(io.BytesIO(data)).load()
        if not isinstance(metadata, Metadata):
            raise CorruptionError(f"{folder} has no metadata of DCP", kind="document")
        _check(folder, metadata)
        meta = getattr(metadata, "storage_meta", None) or StorageMeta()
        meta.load_id = self.load_id
        metadata.storage_meta = meta
        return metadata


class _Planner(DefaultLoadPlanner):
    """Makes the state that the metadata describes, of `tensors` that are given."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self._tensors = tensors

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        assert metadata is not None, "it has been read"
        described = metadata.state_dict_metadata
        named = {name: each for name, each in described.items() if isinstance(each, TensorStorageMetadata)}
        made = dict(zip(named, self._tensors(list(named.values())), strict=True))
        paths = metadata.planner_data or {}
        for name, each in described.items():
            set_element(state_dict, paths.get(name, (name,)), made.get(name, each))
        super().set_up_planner(state_dict, metadata, is_coordinator)

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        plain = torch.load(value, weights_only=True)
        super().load_bytes(read_item, _saved(plain))


class _Unpickler(pickle._Unpickler):
    """Makes what describes a checkpoint, and nothing else.

    It is the one in Python: that in C takes memory for a number that stands in the file, and nothing of it can be
    held back.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    del dispatch[pickle.BYTEARRAY8[0]]  # takes what memory the file says

    def load_build(self) -> None:
        """Attributes of what was made here, and never of a class, which all of the process shares."""
        target = self.stack[-2]  # type: ignore[attr-defined]
        if callable(target) or isinstance(target, enum.Enum):
            raise pickle.UnpicklingError(f"its metadata would change {target!r}")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        known = name in _CLASSES.get(module, ())
        if not known and not (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            raise pickle.UnpicklingError(f"its metadata asks for {module}.{name}")
        return super().find_class(module, name)


def _told(path: Path, error: BaseException) -> CkptError:
    """What went wrong, in our words: what torch makes of a damaged folder is manifold."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, CkptError):
        return error
    if isinstance(error, pickle.UnpicklingError):
        return FormatError(f"{path} holds more than tensors and plain values: {error}", kind="pickle")
    return CorruptionError(f"{path} is a damaged folder of DCP: {error!r}", kind="document")


def _saved(plain: Any) -> io.BytesIO:
    """A value that is known to be plain, as torch is to read it once more."""
    out = io.BytesIO()
    torch.save(plain, out)
    out.seek(0)
    return out


def _check(folder: Path, metadata: Metadata) -> None:
    sizes: dict[str, int] = {}
    for info in (metadata.storage_data or {}).values():
        name = str(info.relative_path)
        if not is_file_name(name):
            raise CorruptionError(f"{folder} names {name!a}, which is no file in it", kind="document")
        sizes[name] = os.stat(folder / name).st_size
        if not 0 <= info.offset <= info.offset + info.length <= sizes[name]:
            raise CorruptionError(f"{folder} names bytes behind the end of {name}", kind="truncated")
        if getattr(info, "transform_descriptors", None):
            raise FormatError(f"{folder} is compressed, which is not read here", kind="format")
    claimed = 0
    for each in metadata.state_dict_metadata.values():
        if isinstance(each, TensorStorageMetadata):
            if min((0, *each.size)) < 0:
                raise CorruptionError(f"{folder} has a tensor of an impossible shape", kind="document")
            claimed += math.prod(each.size) * each.properties.dtype.itemsize
    if claimed > sum(sizes.values()):
        raise CorruptionError(f"{folder} claims {claimed} bytes of tensors, more than it has", kind="size")
    _check_lists(folder, metadata.planner_data or {})


def _check_lists(folder: Path, paths: Mapping[str, tuple[Any, ...]]) -> None:
    """That no list is longer than what is in it."""
    members = Counter(path[:depth] for path in paths.values() for depth in range(len(path)))
    for path in paths.values():
        for depth, part in enumerate(path):
            if isinstance(part, int) and not 0 <= part < members[path[:depth]]:
                raise CorruptionError(f"{folder} has a list of an impossible length", kind="document")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without its warning that there is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
