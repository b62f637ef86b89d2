"""The format `huggingface`: a folder as `save_pretrained` writes it, weights in safetensors and small files beside.

As a state it is what a checkpoint of Trainer holds of it: `model` with the weights by name, `files` with the bytes of
the configuration, the tokenizer and the like by their paths in the folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ckpt_core.backends.contract import StorageBackend
from ckpt_core.backends.tensors import index_of, read_shards, write_shards
from ckpt_core.errors import CorruptionError, StateError
from ckpt_core.model import StagedTensor
from ckpt_core.tree import borrow, flatten, is_file_name, registry, tensor_paths

__all__ = ["HuggingFaceBackend"]

_CONFIG = "config.json"
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".msgpack", ".h5",
            ".onnx", ".gguf", ".ckpt", ".tflite", ".ot")  # fmt: skip
_LARGEST = 256 << 20


class HuggingFaceBackend(StorageBackend):
    """A folder that `from_pretrained` reads. Of a checkpoint of Trainer it holds the model and its files alone."""

    name = "huggingface"

    def __init__(self, shard_bytes: int = 5_000_000_000) -> None:
        self.shard_bytes = shard_bytes

    def save_checkpoint(self, data: Any, path: Path) -> dict[str, Any]:
        kept = self.kept(data)
        path.mkdir()
        for name, content in kept["files"].items():
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        snapshot = borrow(flatten(kept["model"], registry))
        tensors: dict[str, StagedTensor] = {
            name.replace("~1", "/").replace("~0", "~"): snapshot.tensors[index]
            for name, index in tensor_paths(snapshot.tree).items()
        }
        write_shards(path, tensors, {"format": "pt"}, self.shard_bytes)
        return {}

    def load_checkpoint(self, path: Path, device: str | None = None) -> Any:
        return self._read(path, device, copy=True)

    def view_checkpoint(self, path: Path) -> Any:
        return self._read(path, None, copy=False)

    def recognises(self, path: Path) -> bool:
        return path.is_dir() and (path / _CONFIG).is_file() and index_of(path) is not None

    def kept(self, data: Any) -> dict[str, Any]:
        """The weights under their names, as modules of PyTorch call them, and the files. Raises StateError."""
        files = data.get("files") if isinstance(data, Mapping) else None
        model = data.get("model") if isinstance(data, Mapping) else None
        if (
            not isinstance(files, Mapping)
            or _CONFIG not in files
            or not isinstance(model, Mapping)
            or not model
        ):
            raise StateError(
                "the format 'huggingface' needs a state with the weights in `model` and `config.json` in `files`, as "
                "checkpoints of Trainer and imported folders have: export the weights as safetensors instead",
                kind="format",
            )
        for name, content in files.items():
            if (
                not isinstance(name, str)
                or not is_file_name(name)
                or not isinstance(content, (bytes, bytearray))
            ):
                raise StateError(f"{name!a} in `files` is not the content of a file", kind="format")
            if name.endswith(_WEIGHTS):
                raise StateError(f"{name!a} in `files` would be taken for weights", kind="format")
        named: dict[str, Any] = {}
        for name, weight in _named(model.items()):
            if name in named:
                raise StateError(f"two weights in `model` would both be called {name!a}", kind="format")
            named[name] = weight
        return {"model": named, "files": dict(files)}

    def _read(self, path: Path, device: str | None, *, copy: bool) -> Any:
        codec = registry.tensor_named("torch" if device is not None else "numpy")
        model = {
            name: codec.wrap(spec, data.copy() if copy else data)
            for name, (spec, data) in read_shards(path).tensors.items()
        }
        if device is not None:
            model = {name: tensor.to(device) for name, tensor in model.items()}
        return {"model": model, "files": _files(path)}


def _files(folder: Path) -> dict[str, bytes]:
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (
            not path.is_file()
            or name.endswith(_WEIGHTS)
            or any(part.startswith(".") for part in name.split("/"))
        ):
            continue
        if path.stat().st_size > _LARGEST or not is_file_name(name):
            raise CorruptionError(f"{name!a} in {folder} is no file of a model's configuration", kind="size")
        files[name] = path.read_bytes()
    return files


def _named(items: Iterable[tuple[Any, Any]], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Weights with the names of the modules around them, `layer.0.weight`."""
    for key, value in items:
        if isinstance(value, Mapping):
            yield from _named(value.items(), f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            yield from _named(enumerate(value), f"{prefix}{key}.")
        elif value is not None and hasattr(value, "shape"):
            yield f"{prefix}{key}", value
