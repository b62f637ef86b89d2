"""From a committed checkpoint back to a state in memory, every byte checked on the way."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from ckpt_core.backends import StorageBackend
from ckpt_core.errors import StateMismatchError, UsageError
from ckpt_core.format.documents import Manifest
from ckpt_core.model import Buffer, TensorSpec
from ckpt_core.pipeline.filed import MemoryChunks, load_files, unpacked
from ckpt_core.repository import ChunkReader, Repository, Verify
from ckpt_core.tree import (
    CodecRegistry,
    ObjectCodec,
    Selection,
    TensorCodec,
    UnsupportedValueError,
    backend_files,
    closed,
    dtypes,
    opened,
    rebuild,
    rebuild_like,
    tensor_paths,
    wanted_tensors,
)
from ckpt_core.tree.compare import mismatch

__all__ = ["load_state"]


def load_state(
    repository: Repository,
    manifest: Manifest,
    registry: CodecRegistry,
    *,
    like: Any = None,
    include: str | Sequence[str] | None = None,
    verify: Verify = "full",
    framework: str | None = None,
    backend: StorageBackend | None = None,
) -> Any:
    """The state of a checkpoint; see `CheckpointManager.load` for the arguments and errors."""
    if verify not in ("full", "lazy", "off"):
        raise UsageError(f"verify={verify!r} must be 'full', 'lazy' or 'off'", kind="option")
    packed = repository.reader(manifest, verify)
    chunks: ChunkReader | MemoryChunks = packed
    try:
        if backend_files(manifest.state) is not None:
            with closing(packed):
                if verify == "full":
                    packed.check_headers()
                state = load_files(repository, manifest, packed, backend)
            if like is None and include is None and framework is None:
                return state
            manifest, chunks = unpacked(manifest, state)
        tree, plain, given = manifest.state, like is None, like
        like = opened(given, registry)
        selection = Selection(include)
        selection.check(tree)
        wanted = wanted_tensors(tree, like, registry, selection, plain=plain)
        loader = _Loader(chunks, manifest, registry, framework)
        loader.check(wanted)
        if verify == "full":
            chunks.check_headers(index for index, _ in wanted)
        loader.read(wanted)
    finally:
        chunks.close()
    if plain:
        return rebuild(tree, loader.give, registry, selection)
    return closed(given, like, rebuild_like(tree, like, loader.give, registry, selection))


class _Loader:
    """Reads the wanted tensors, straight into those of `like=` where that can be, and hands them out."""

    def __init__(
        self,
        chunks: ChunkReader | MemoryChunks,
        manifest: Manifest,
        registry: CodecRegistry,
        framework: str | None,
    ) -> None:
        self._chunks = chunks
        self._manifest = manifest
        self._registry = registry
        self._framework = framework
        self._direct: dict[tuple[int, int], Buffer] = {}
        self._fresh: dict[int, Buffer] = {}
        self._values: dict[int, Any] = {}

    def check(self, wanted: Sequence[tuple[int, Any]]) -> None:
        """Raises StateMismatchError where a tensor of `like=` has another shape or kind of values."""
        differences = []
        paths = {index: path for path, index in reversed(tensor_paths(self._manifest.state).items())}
        for index, target in wanted:
            if target is None:
                continue
            saved, has = self._chunks.spec(index), self._codec_of(target).spec(target)
            if saved.shape != has.shape:
                differences.append(
                    f"{paths[index]}: saved with shape {list(saved.shape)}, like= has {list(has.shape)}"
                )
            elif not dtypes.can_cast(saved.dtype, has.dtype):
                differences.append(f"{paths[index]}: saved as {saved.dtype}, like= has {has.dtype}")
        if differences:
            raise mismatch(differences, kind="tensors")

    def read(self, wanted: Sequence[tuple[int, Any]]) -> None:
        """Reads every wanted tensor once. Raises CorruptionError; then `like=` may be partly overwritten."""
        for index, target in wanted:
            spec = self._chunks.spec(index)
            buffer = None if target is None else self._codec_of(target).destination(target, spec)
            if buffer is not None:
                self._direct[index, id(target)] = buffer
            elif index not in self._fresh:
                self._fresh[index] = self._chunks.fresh(index)
        jobs = [(index, buffer) for (index, _), buffer in self._direct.items()]
        self._chunks.read_all(jobs + list(self._fresh.items()))

    def give(self, index: int, target: Any) -> Any:
        """A tensor that was read: `target` itself, filled, or a new one."""
        spec = self._chunks.spec(index)
        if target is None:
            if index not in self._values:
                self._values[index] = _wrap(self._codec_for(index), spec, self._fresh[index])
            return self._values[index]
        if (index, id(target)) in self._direct:
            return target
        codec = self._codec_of(target)
        return codec.assign(target, _wrap(codec, spec, self._fresh[index]))

    def _codec_of(self, target: Any) -> TensorCodec:
        codec = self._registry.find(type(target))
        assert codec is not None, "compare() let an unknown value pass"
        assert not isinstance(codec, ObjectCodec), "compare() let a plain value pass"
        return codec

    def _codec_for(self, index: int) -> TensorCodec:
        kind = self._manifest.tensors[index].kind
        name = kind if self._framework is None or kind in ("bytes", "bytearray") else self._framework
        return self._registry.tensor_named(name)


def _wrap(codec: TensorCodec, spec: TensorSpec, data: Buffer) -> Any:
    try:
        return codec.wrap(spec, data)
    except UnsupportedValueError as error:
        raise StateMismatchError(str(error), kind="dtype") from None
