"""The backend `safetensors`: the tensors by path in one plain file, or in shards with an index as HuggingFace has them.

What is no tensor stands as text in the metadata, so that a state comes back whole, and other programs need not care.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
from safetensors import safe_open

from ckpt_core.backends.contract import StorageBackend
from ckpt_core.backends.parts import STRUCTURE, aliases, described, names_of, on_device, rebuilt
from ckpt_core.errors import CorruptionError, FormatError
from ckpt_core.format.tensorfile import TensorFile, map_tensors, write_tensors
from ckpt_core.model import Buffer, Snapshot, StagedTensor, TensorSpec
from ckpt_core.tree import borrow, flatten, is_file_name, registry

__all__ = ["INDEX", "SafetensorsBackend", "index_of", "read_shards", "write_shards"]

INDEX = "model.safetensors.index.json"
_PAGE = 4096  # the header may grow a little, as a counter does, and the data stays where it is
_PIECE = 8 << 20
_INDEX_LIMIT = 100 << 20
_OF_NUMPY = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "BF16", "F32", "F64"}
"""What safetensors' own reader can give to numpy."""
_FRAMEWORKS = {"torch": "pt", "numpy": "np", "tensorflow": "tf", "jax": "flax"}


class SafetensorsBackend(StorageBackend):
    """Plain safetensors: a path that ends so becomes one file, any other a folder of shards with an index.

    `shard_bytes`: how large a shard may become, unless a single tensor is larger.
    """

    name = "safetensors"
    suffix: ClassVar[str] = ".safetensors"

    def __init__(self, shard_bytes: int = 5_000_000_000) -> None:
        self.shard_bytes = shard_bytes

    def save_checkpoint(self, data: Any, path: Path) -> dict[str, Any]:
        snapshot = borrow(flatten(data, registry))
        names = names_of(snapshot)
        tensors = _named(snapshot, names)
        facts = {STRUCTURE: described(snapshot, names)}
        if path.name.endswith(self.suffix):
            _write(path, tensors, facts)
        else:
            path.mkdir()
            write_shards(path, tensors, facts, self.shard_bytes)
        return {}

    def load_checkpoint(self, path: Path, device: str | None = None) -> Any:
        return self._read(path, device, copy=True)

    def view_checkpoint(self, path: Path) -> Any:
        return self._read(path, None, copy=False)

    def check_checkpoint(self, path: Path, data: Any) -> list[str]:
        bad = set(super().check_checkpoint(path, data))
        snapshot = borrow(flatten(data, registry))
        expected = _named(snapshot, names_of(snapshot))
        for file in [path] if path.is_file() else sorted(path.glob("*.safetensors")):
            with safe_open(file, "np") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    if expected[name].spec.dtype in _OF_NUMPY:
                        read = opened.get_tensor(name).reshape(-1).view("u1")
                        bad |= set() if np.array_equal(read, expected[name].data) else {name}
        return sorted(bad)

    def recognises(self, path: Path) -> bool:
        return path.name.endswith((self.suffix, f"{self.suffix}.index.json")) or (
            path.is_dir() and index_of(path) is not None and not (path / "config.json").exists()
        )

    def _read(self, path: Path, device: str | None, *, copy: bool) -> Any:
        found = read_shards(path)

        def read(name: str, spec: TensorSpec) -> Buffer:
            data = found.tensors[name][1]
            return data.copy() if copy else data

        if STRUCTURE in found.metadata:
            state = rebuilt(found.metadata[STRUCTURE], read)
        else:  # somebody else's file
            codec = registry.tensor_named("torch" if device is not None else "numpy")
            state = {name: codec.wrap(spec, read(name, spec)) for name, (spec, _) in found.tensors.items()}
        return on_device(state, device)


def _named(snapshot: Snapshot, names: list[str]) -> dict[str, StagedTensor]:
    """Tensors by name; tied ones are written under each of theirs."""
    tensors = dict(zip(names, snapshot.tensors, strict=True))
    return tensors | {name: snapshot.tensors[index] for name, index in aliases(snapshot, names).items()}


def write_shards(
    folder: Path, tensors: dict[str, StagedTensor], metadata: dict[str, str], shard_bytes: int
) -> None:
    """Writes tensors to a folder as HuggingFace names them: one file, or several and an index."""
    shards: list[dict[str, StagedTensor]] = [{}]
    weight = 0
    for name, tensor in tensors.items():
        if shards[-1] and weight + tensor.data.nbytes > shard_bytes:
            shards.append({})
            weight = 0
        shards[-1][name] = tensor
        weight += tensor.data.nbytes
    if len(shards) == 1:
        _write(folder / "model.safetensors", tensors, metadata)
        return
    weights: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / file, shard, {key: text for key, text in metadata.items() if key != STRUCTURE})
        weights |= dict.fromkeys(shard, file)
    total = sum(tensor.data.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total, **metadata}, "weight_map": weights}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write(path: Path, tensors: dict[str, StagedTensor], metadata: dict[str, str]) -> None:
    kinds = {tensor.kind for tensor in tensors.values()}
    known = _FRAMEWORKS.get(next(iter(kinds))) if len(kinds) == 1 else None
    facts = metadata | ({"format": known} if known and "format" not in metadata else {})

    def pieces(name: str) -> Iterator[Buffer]:
        data = tensors[name].data
        for begin in range(0, data.nbytes, _PIECE):
            yield data[begin : begin + _PIECE]

    with open(path, "xb") as out:
        write_tensors(out, {name: each.spec for name, each in tensors.items()}, pieces, facts, align=_PAGE)


class _Index(msgspec.Struct):
    weight_map: dict[str, str]
    metadata: dict[str, Any] = {}


def index_of(folder: Path) -> Path | None:
    """The index of a folder of shards, or its only file; None where there is neither."""
    found = sorted(folder.glob("*.safetensors.index.json")) or sorted(folder.glob("*.safetensors"))
    return found[0] if len(found) == 1 else None


def read_shards(path: Path) -> TensorFile:
    """The tensors of a file, of an index and its shards, or of a folder with either. Raises CorruptionError;
    FormatError where it is none of these."""
    if path.is_dir():
        found = index_of(path)
        if found is None:
            raise FormatError(
                f"{path} holds neither one .safetensors file nor one index of several", kind="folder"
            )
        return read_shards(found)
    if not path.name.endswith(".json"):
        return map_tensors(path)
    if path.stat().st_size > _INDEX_LIMIT:
        raise CorruptionError(f"{path} is too large for an index", kind="size")
    try:
        index = msgspec.json.decode(path.read_bytes(), type=_Index)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise CorruptionError(f"{path} is no index of shards: {error}", kind="document") from error
    files = set(index.weight_map.values())
    for file in files:
        if "/" in file or not is_file_name(file):
            raise CorruptionError(f"{path} names {file!a}, which is no file beside it", kind="document")
    shards = {file: map_tensors(path.parent / file) for file in sorted(files)}
    tensors = {}
    for name, file in index.weight_map.items():
        if name not in shards[file].tensors:
            raise CorruptionError(f"{path}: {file} has no tensor {name!r}", kind="missing")
        tensors[name] = shards[file].tensors[name]
    return TensorFile({key: text for key, text in index.metadata.items() if isinstance(text, str)}, tensors)
