"""Checkpoints from and to files of other programs, in any format that a storage backend knows.

Tensors are never all in memory: those of an import are mapped from its files, those of an export from a private file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_core.backends import StorageBackend, find_backend, guess_backend
from ckpt_core.backends.room import laid_out
from ckpt_core.errors import CkptError, CorruptionError, FormatError, NotFoundError, StateError, UsageError
from ckpt_core.format.documents import Manifest
from ckpt_core.hooks import HookContext, HookEvent
from ckpt_core.maintenance.leaves import branch
from ckpt_core.manager import CheckpointManager
from ckpt_core.model import Buffer, Checkpoint
from ckpt_core.pipeline.opened import Chunks, open_chunks
from ckpt_core.pipeline.placing import placed
from ckpt_core.pipeline.trust import trusted_manifest
from ckpt_core.repository import Repository
from ckpt_core.tree import (
    UnsupportedValueError,
    borrow,
    dtypes,
    flatten,
    rebuild,
    registry,
    tensor_paths,
    walk,
)

__all__ = ["Exported", "export_checkpoint", "import_checkpoint", "write_out"]

_PIECE = 8 << 20
_SHOWN = 6

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote: where, in which format, and how many tensors of how many bytes."""

    path: Path
    format: str
    tensors: int
    nbytes: int


def export_checkpoint(
    manager: CheckpointManager,
    ref: str,
    target: str | os.PathLike[str],
    *,
    format: str | StorageBackend | None = None,  # noqa: A002 - what everybody calls it
    select: str | None = None,
    verify: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Writes a checkpoint as a file or folder of another format, by the name of a storage backend; left out, by how
    the target is called.

    `select`: the path of a part of the state, which is written as if it were the whole. `force` replaces a file.
    The target appears whole or not at all. With `verify` it is first read back by the format's own library, and
    every tensor compared. `progress` is told the bytes read and in all. Raises UsageError, NotFoundError,
    CorruptionError, StoreError, and what the format cannot hold as StateError or FormatError.
    """
    return write_out(
        manager.workspace.repository, manager.resolve(ref), target, format=format, select=select, verify=verify,
        force=force, progress=progress, backend=manager.backend,
    )  # fmt: skip


def write_out(
    repository: Repository,
    checkpoint: Checkpoint,
    target: str | os.PathLike[str],
    *,
    format: str | StorageBackend | None = None,  # noqa: A002
    select: str | None = None,
    verify: bool = True,
    force: bool = False,
    progress: Progress | None = None,
    backend: StorageBackend | None = None,
) -> Exported:
    """The same of a checkpoint that is known. `backend`: one that it may have been saved by, though not installed."""
    place = Path(os.path.abspath(target))
    writer = _format(format, place)
    manifest = trusted_manifest(repository, checkpoint)
    with placed(place, force=force) as path:
        manifest, chunks = open_chunks(repository, manifest, backend=backend)
        with closing(chunks):
            node = _selected(manifest.state, select)
            sizes = {index: dtypes.nbytes(chunks.spec(index)) for index in tensor_paths(node).values()}
            data = laid_out(
                chunks.read_range,
                sizes,
                chunk_bytes=manifest.chunk_bytes,
                folder=path.parent,
                progress=progress,
            )
            state = _save(writer, _state(manifest, chunks, node, data, writer.framework), path)
            bad = _read_back(writer, path, state) if verify else []
            if bad:
                raise CorruptionError(
                    f"{place} was not written: read back by the format {writer.name!r}, {_some(bad)} are not "
                    "what they are in the checkpoint",
                    kind="export",
                    paths=tuple(bad),
                )
            tensors = borrow(flatten(state, registry)).tensors
    return Exported(place, writer.name, len(tensors), sum(tensor.data.nbytes for tensor in tensors))


def import_checkpoint(
    manager: CheckpointManager,
    source: str | os.PathLike[str],
    *,
    step: int = 0,
    format: str | StorageBackend | None = None,  # noqa: A002
    under: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
    verify: bool = True,
    progress: Progress | None = None,
) -> Checkpoint:
    """Saves what a file or folder of another program holds as a checkpoint of the manager's experiment.

    `format`: the name of a storage backend; left out, it is told by what is there. `under`: the path in the state
    that it is to have, as `model`. With `verify` what was stored is read back and compared with the source.
    Nothing is unpickled, and no name in the source becomes a path. Raises NotFoundError, UsageError,
    CorruptionError and FormatError where the source is damaged or no file of that format, and what `save` raises.
    """
    place = Path(source)
    if not place.exists():
        raise NotFoundError(f"there is nothing at {place} to import", kind="source", path=str(place))
    if not place.is_file() and not place.is_dir():  # a pipe would be waited for
        raise UsageError(f"{place} is neither a file nor a folder", kind="source", path=str(place))
    state = _load(_format(format, place), place)
    for name in reversed(under.strip("/").split("/") if under else ()):
        state = {name: state}
    tagged = {tag: each for each in manager.checkpoints() for tag in each.tags} if tags else {}
    manager.begin_attempt()
    saved = manager.save(
        state,
        step=step,
        metrics=metrics,
        tags=tags,
        wait=True,
        reason=f"imported {place.name}",
        progress=progress,
    )
    checkpoint = saved.result()
    if verify:
        try:
            _compare(manager, checkpoint, state, place)
        except CkptError as error:
            _take_back(manager, checkpoint, tagged, error)
            raise
    return checkpoint


def _format(given: str | StorageBackend | None, place: Path) -> StorageBackend:
    if given is None:
        return guess_backend(place)
    return find_backend(given) if isinstance(given, str) else given


def _selected(tree: Any, select: str | None) -> Any:
    if not select:
        return tree
    try:
        return branch(tree, select.rstrip("/"))
    except KeyError:
        tops = sorted({path.partition("/")[0] for path, _ in walk(tree)})
        raise NotFoundError(
            f"the state has no {select!r}; at its top are {', '.join(tops[:_SHOWN])}",
            kind="path",
            path=select,
        ) from None


def _state(manifest: Manifest, chunks: Chunks, node: Any, data: Mapping[int, Buffer], framework: str) -> Any:
    """The state of a tree, with tensors of a framework if it has such."""
    values: dict[int, Any] = {}

    def get(index: int, target: Any) -> Any:
        if index not in values:
            own = manifest.tensors[index].kind
            wanted = own if own in ("bytes", "bytearray") else framework or own
            try:
                values[index] = registry.tensor_named(wanted).wrap(chunks.spec(index), data[index])
            except UnsupportedValueError:
                values[index] = registry.tensor_named(own).wrap(chunks.spec(index), data[index])
        return values[index]

    return rebuild(node, get, registry)


def _save(writer: StorageBackend, state: Any, path: Path) -> Any:
    """Writes what of a state the format can hold, and returns that."""
    try:
        kept = writer.kept(state)
        writer.save_checkpoint(kept, path)
    except (CkptError, OSError):
        raise
    except Exception as error:
        raise StateError(
            f"the format {writer.name!r} cannot hold this state ({type(error).__name__}: {error}): select= "
            "(--select) a part of it, or choose another format",
            kind="format",
        ) from error
    return kept


def _read_back(writer: StorageBackend, path: Path, state: Any) -> list[str]:
    try:
        return writer.check_checkpoint(path, state)
    except CkptError:
        raise
    except Exception as error:
        raise FormatError(
            f"nothing was written: what the format {writer.name!r} made of this state cannot be read back "
            f"({type(error).__name__}: {error}): choose another format, or part of the state (select=, --select)",
            kind="format",
        ) from error


def _load(reader: StorageBackend, place: Path) -> Any:
    try:
        return reader.view_checkpoint(place)
    except CkptError:
        raise
    except Exception as error:
        raise FormatError(
            f"{place} cannot be read as {reader.name!r} ({type(error).__name__}: {error}): say format= (--format) if "
            "it is another",
            kind="format",
            path=str(place),
        ) from error


def _compare(manager: CheckpointManager, checkpoint: Checkpoint, state: Any, place: Path) -> None:
    """Raises CorruptionError where a checkpoint does not hold what its source does."""
    try:
        bad = _stored_otherwise(manager, checkpoint, state)
    except CorruptionError as error:  # it has other bytes than when they were hashed
        raise CorruptionError(
            f"{place} was not imported, as it changed while it was read, or the store does not keep what is written: "
            f"{error}",
            kind="import",
        ) from error
    if bad:
        raise CorruptionError(
            f"{place} was not imported: {_some(bad)} changed while they were read",
            kind="import",
            paths=tuple(bad),
        )


def _take_back(
    manager: CheckpointManager, checkpoint: Checkpoint, tagged: Mapping[str, Checkpoint], error: CkptError
) -> None:
    """Forgets what was not imported, and sets its tags back. No hook is asked, but all are told."""
    try:
        manager.workspace.forget([checkpoint])
        for tag in checkpoint.tags:
            if tag in tagged:
                manager.workspace.tag(tagged[tag], tag)
            else:
                manager.workspace.untag(checkpoint.experiment, tag)
        facts: dict[str, Any] = {
            "experiment": checkpoint.experiment, "step": checkpoint.step, "attempt": checkpoint.attempt,
            "checkpoint": checkpoint, "metrics": checkpoint.metrics, "reason": "import",
        }  # fmt: skip
        manager.hooks.fire(HookContext(HookEvent.AFTER_DELETE, **facts))
    except CkptError as other:
        error.add_note(
            f"and {checkpoint.id}, which should not be, could not be taken back ({other}): `ckpt forget` it"
        )


def _stored_otherwise(manager: CheckpointManager, checkpoint: Checkpoint, state: Any) -> list[str]:
    """The paths of tensors that a checkpoint does not hold as a state has them."""
    repository = manager.workspace.repository
    manifest = repository.read(checkpoint.key).manifest
    manifest, chunks = open_chunks(repository, manifest, backend=manager.backend)
    snapshot = borrow(flatten(state, registry))
    expected, bad = tensor_paths(snapshot.tree), []
    step = max(1, _PIECE // manifest.chunk_bytes) * manifest.chunk_bytes  # no chunk is read twice
    with closing(chunks):
        stored = tensor_paths(manifest.state)
        for path, index in expected.items():
            tensor = snapshot.tensors[index]
            pieces = range(0, tensor.data.nbytes, step)
            if (
                path not in stored
                or chunks.spec(stored[path]) != tensor.spec
                or not all(
                    np.array_equal(
                        chunks.read_range(stored[path], at, min(at + step, tensor.data.nbytes)),
                        tensor.data[at : at + step],
                    )
                    for at in pieces
                )
            ):
                bad.append(path)
    return bad


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(sorted(paths)[:_SHOWN]) + more
