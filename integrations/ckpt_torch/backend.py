"""The storage backend `torch`: a state as the file that `torch.save` writes, read with `weights_only`.

Tensors and plain containers stand in it as they are, `torch.load(path)["model"]["weight"]`. What the restricted reader
of PyTorch would refuse (arrays of numpy, objects that have a codec) stands as dicts of one key that begins with `$`.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ckpt_core import CorruptionError, FormatError, StorageBackend
from ckpt_core.model import TensorSpec
from ckpt_core.tree import Flat, UnsupportedValueError, borrow, dtypes, flatten, plain_value, registry
from ckpt_core.tree.nodes import children, tag_of
from ckpt_torch.codec import TorchCodec

__all__ = ["TorchBackend"]

_EXPANSION = 1032  # what deflate can make of a byte at the most
_CODEC = TorchCodec()


class TorchBackend(StorageBackend):
    """A `.pt` file. With `allow_pickle` loads also files of other programs that hold arbitrary Python objects, which
    runs whatever code the file says: only for files that you trust as you trust your own code."""

    name = "torch"
    suffix: ClassVar[str] = ".pt"
    framework: ClassVar[str] = "torch"

    def __init__(self, allow_pickle: bool = False) -> None:
        self.allow_pickle = allow_pickle

    def save_checkpoint(self, data: Any, path: Path) -> dict[str, Any]:
        torch.save(natural(flatten(data, registry)), path)
        return {"torch": str(torch.__version__)}

    def load_checkpoint(self, path: Path, device: str | None = None) -> Any:
        return self._load(path, device, mapped=False)

    def view_checkpoint(self, path: Path) -> Any:
        return self._load(path, None, mapped=True)

    def recognises(self, path: Path) -> bool:
        return path.name.endswith((".pt", ".pth", ".ckpt"))

    def _load(self, path: Path, device: str | None, *, mapped: bool) -> Any:
        plain = _is_plain(path)
        try:
            found = torch.load(
                path, device or "cpu", weights_only=not self.allow_pickle, mmap=mapped and plain
            )
        except pickle.UnpicklingError as error:
            raise FormatError(
                f"{path} holds more than tensors and plain values, and is not unpickled: if you trust it as your own "
                f"code, TorchBackend(allow_pickle=True) reads it ({_short(error)})",
                kind="pickle",
                path=str(path),
            ) from error
        except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
            raise CorruptionError(
                f"{path} is no file of torch.save, or a damaged one: {_short(error)}", kind="document"
            ) from error
        return restored(found)


def natural(flat: Flat) -> Any:
    """A state as torch.save is to have it."""
    snapshot = borrow(flat)

    def leaf(index: int) -> Any:
        live, staged = flat.leaves[index], snapshot.tensors[index]
        if live.codec.name == "torch":
            return live.value.detach()
        data = staged.data if staged.data.flags.writeable else staged.data.copy()
        spec, kept = staged.spec, TensorSpec("U8", (staged.data.nbytes,))
        try:
            value = _CODEC.wrap(spec, data)
        except UnsupportedValueError:
            value = _CODEC.wrap(kept, data)
        return {
            "$tensor": {"kind": staged.kind, "dtype": spec.dtype, "shape": list(spec.shape), "data": value}
        }

    made: dict[int, Any] = {}

    def node(tree: Any) -> Any:
        below = children(tree, None)
        tag = tag_of(tree) if isinstance(tree, dict) else None
        if tag == "$tensor":
            index = tree[tag]
            if index not in made:
                made[index] = leaf(index)
            return made[index]
        if below is None:
            return plain_value(tree)
        items = [node(item) for _, item in below]
        if tag == "$object":
            return {tag: {"codec": tree[tag]["codec"], "value": items[0]}}
        if isinstance(tree, list):
            return items
        if tag in ("$tuple", "$namedtuple"):
            return tuple(items)
        keys = [plain_value(key) for key, _ in tree[tag]] if tag == "$dict" else list(tree)
        named = dict(zip(keys, items, strict=True))
        return {"$dict": list(named.items())} if _tag(named) else named

    return node(flat.tree)


def restored(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """The state of what `natural` gave, and anything else as it is. Tied arrays come back tied."""
    seen = {} if seen is None else seen
    if type(value) in (list, tuple):
        return type(value)(restored(item, seen) for item in value)
    if not isinstance(value, dict):
        return value
    tag = _tag(value)
    body = value[tag] if tag else None
    if tag == "$dict" and isinstance(body, list):
        return {key: restored(item, seen) for key, item in body}
    if tag == "$object" and isinstance(body, dict) and body.keys() == {"codec", "value"}:
        return _decoded(body, seen)
    if tag == "$tensor" and isinstance(body, dict) and body.keys() == {"kind", "dtype", "shape", "data"}:
        if id(body) not in seen:
            seen[id(body)] = _array(body)
        return seen[id(body)]
    return type(value)((key, restored(item, seen)) for key, item in value.items())


def _decoded(body: Mapping[str, Any], seen: dict[int, Any]) -> Any:
    codec = registry.object_named(str(body["codec"]))
    try:
        return codec.decode(restored(body["value"], seen))
    except Exception as error:  # a codec is somebody's code, and its input comes from a file
        raise FormatError(f"codec {codec.name!r} could not make its object: {error}", kind="codec") from error


def _array(body: Mapping[str, Any]) -> Any:
    try:
        spec = TensorSpec(str(body["dtype"]), tuple(int(length) for length in body["shape"]))
        data = _CODEC.view(body["data"])
        if min((0, *spec.shape)) < 0 or data is None or dtypes.nbytes(spec) != data.nbytes:
            raise ValueError(f"{spec.dtype} of {list(spec.shape)} does not fit its bytes")
        return registry.tensor_named(str(body["kind"])).wrap(spec, np.asarray(data))
    except (TypeError, ValueError, AttributeError, UnsupportedValueError) as error:
        raise CorruptionError(f"an array in the file cannot be read: {error}", kind="document") from error


def _tag(value: Mapping[Any, Any]) -> str | None:
    """The only key of a dict, if it begins as a tag does."""
    key = next(iter(value), None) if len(value) == 1 else None
    return key if isinstance(key, str) and key.startswith("$") else None


def _is_plain(path: Path) -> bool:
    """Whether its tensors lie in it as they are, so that they can be mapped: not in an old file, nor in an archive
    that somebody compressed. Raises CorruptionError where a member claims more than it can expand to."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise CorruptionError(f"{path} is a damaged archive: {error}", kind="document") from error
    for info in members:
        if info.file_size > info.compress_size * _EXPANSION:
            raise CorruptionError(f"{path} claims to expand to {info.file_size} bytes", kind="size")
    return all(info.compress_type == zipfile.ZIP_STORED for info in members)


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
