"""`ckpt restore`: a checkpoint as files that any program can read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, complete_references, ranking_options, trusted_option
from ckpt_core.errors import UsageError

if TYPE_CHECKING:
    from ckpt_core.format.documents import Manifest
    from ckpt_core.model import Checkpoint, TensorSpec
    from ckpt_core.repository import ChunkReader

_FORMATS = {"torch": "pt", "numpy": "np", "tensorflow": "tf", "jax": "flax"}


@command(
    "restore",
    examples=[
        ("ckpt restore latest state/", "tensors.safetensors and state.json"),
        ("ckpt restore digits@best best.safetensors --metric val_loss", "the tensors alone, as one file"),
        ("ckpt restore best model.safetensors --include model --strip model", "a model for other tools"),
    ],
)
@click.argument("reference", metavar="REF", shell_complete=complete_references)
@click.argument("target", metavar="TARGET", type=click.Path())
@click.option(
    "--include", multiple=True, metavar="PATH|PATTERN", help="Only these tensors and values. May be repeated."
)
@click.option("--strip", metavar="PREFIX", help="Leave PREFIX/ out of the tensors' names.")
@click.option(
    "-f", "--force", is_flag=True, help="Replace a file, or a folder that an earlier restore wrote."
)
@ranking_options
@trusted_option
def restore(
    call: Call, reference: str, target: str, include: tuple[str, ...], strip: str | None, force: bool
) -> None:
    """Write a checkpoint to a file or a folder.

    To a file if TARGET ends in .safetensors, else to a folder with
    tensors.safetensors and state.json (plain values by path; of a whole checkpoint also its tree, as
    docs/format.md describes it).

    Every byte is checked on the way. TARGET appears whole or not at all. Tied tensors are written under
    each of their names.
    """
    from pathlib import Path

    from ckpt_core.maintenance.leaves import tensor_specs
    from ckpt_core.tree import Selection, backend_files

    place = Path(target)
    checkpoint, manifest = call.readable(reference)
    made = backend_files(manifest.state)
    if made is not None:
        raise UsageError(
            f"the checkpoint is files of the storage backend {made.name!r}: `ckpt export` writes it in any format",
            kind="backend",
        )
    selection = Selection(include or None)
    selection.check(manifest.state)
    tensors = _named({p: found for p, found in tensor_specs(manifest).items() if p in selection}, strip)
    if place.name.endswith(".safetensors"):
        if not tensors:
            raise UsageError(
                "there is no tensor among these; restore to a folder for plain values", kind="include"
            )
        written = _to_file(call, checkpoint, manifest, place, tensors, force)
    else:
        written = _to_folder(call, checkpoint, manifest, place, tensors, include, force)
    _answer(call, checkpoint, place, len(tensors), written)


def _named(
    tensors: Mapping[str, tuple[int, TensorSpec]], strip: str | None
) -> dict[str, tuple[int, TensorSpec]]:
    if strip is None:
        return dict(tensors)
    prefix = strip.rstrip("/") + "/"
    named: dict[str, tuple[int, TensorSpec]] = {}
    for path, found in tensors.items():
        name = path.removeprefix(prefix)
        if "/" not in name:  # a single key again, as it was before it became part of a path
            name = name.replace("~1", "/").replace("~0", "~")
        if name in named:
            raise UsageError(
                f"--strip {strip} gives two tensors the name {name!r}: add --include", kind="strip"
            )
        named[name] = found
    if tensors and not any(path.startswith(prefix) for path in tensors):
        raise UsageError(f"no tensor stands under {strip!r}, so there is nothing to strip", kind="strip")
    return named


def _metadata(checkpoint: Checkpoint, manifest: Manifest) -> dict[str, str]:
    kinds = {tensor.kind for tensor in manifest.tensors}
    found = {
        "ckpt.checkpoint": checkpoint.id,
        "ckpt.experiment": checkpoint.experiment,
        "ckpt.step": str(checkpoint.step),
    }
    if len(kinds) == 1 and (known := _FORMATS.get(next(iter(kinds)))):
        found["format"] = known  # what other tools look for
    return found


def _to_file(
    call: Call,
    checkpoint: Checkpoint,
    manifest: Manifest,
    place: Any,
    tensors: Mapping[str, Any],
    force: bool,
) -> int:
    from ckpt_core.cli.progress import progress_bar
    from ckpt_core.pipeline.placing import new_file

    chunks = call.workspace.repository.reader(manifest, "lazy")
    try:
        with new_file(place, force=force) as out, progress_bar(call.output, "restoring") as progress:
            return _write(out, tensors, chunks, _metadata(checkpoint, manifest), progress)
    finally:
        chunks.close()


def _to_folder(
    call: Call,
    checkpoint: Checkpoint,
    manifest: Manifest,
    place: Any,
    tensors: Mapping[str, Any],
    include: tuple[str, ...],
    force: bool,
) -> int:
    import json

    from ckpt_core.cli.progress import progress_bar
    from ckpt_core.pipeline.placing import STATE, TENSORS, new_folder

    chunks = call.workspace.repository.reader(manifest, "lazy")
    try:
        with new_folder(place, force=force) as folder:
            with open(folder / TENSORS, "xb") as out, progress_bar(call.output, "restoring") as progress:
                written = _write(out, tensors, chunks, _metadata(checkpoint, manifest), progress)
            document = _state_document(checkpoint, manifest, include)
            text = json.dumps(document, indent=2, allow_nan=False) + "\n"
            (folder / STATE).write_text(text, encoding="utf-8")
            return written + len(text)
    finally:
        chunks.close()


def _write(
    out: BinaryIO,
    tensors: Mapping[str, tuple[int, TensorSpec]],
    chunks: ChunkReader,
    metadata: Mapping[str, str],
    progress: Callable[[int, int], None] | None,
) -> int:
    """Streams tensors (name: index and spec) into a safetensors file; returns its bytes. Each is checked as it is
    read."""
    from ckpt_core.maintenance.plainfile import PlainFile

    file, done = PlainFile(tensors, metadata), 0
    for piece in file.read(chunks, 0, file.size):
        done += out.write(piece if isinstance(piece, bytes) else piece.data)
        if progress is not None:
            progress(done, file.size)
    return file.size


def _state_document(checkpoint: Checkpoint, manifest: Manifest, include: tuple[str, ...]) -> dict[str, Any]:
    """Plain values by path, for people and scripts; of a whole checkpoint also its tree."""
    from ckpt_core.cli.output import jsonable
    from ckpt_core.cli.records import checkpoint_record
    from ckpt_core.maintenance.leaves import named_tree, plain_leaves
    from ckpt_core.tree import Selection

    selection = Selection(include or None)
    values = {path: value for path, value in plain_leaves(manifest.state) if path in selection}
    document = {
        "version": 1,
        "checkpoint": jsonable(checkpoint_record(checkpoint)),
        "values": jsonable(values),
    }
    return document if include else document | {"state": named_tree(manifest.state, manifest)}


def _answer(call: Call, checkpoint: Checkpoint, place: Any, count: int, written: int) -> None:
    from ckpt_core.cli.output import Output
    from ckpt_core.cli.records import checkpoint_record
    from ckpt_core.cli.words import counted, size

    def show(output: Output) -> None:
        output.line(
            f"restored {checkpoint.experiment} step {checkpoint.step} ({checkpoint.id}) to {place}: "
            f"{counted(count, 'tensor')}, {size(written)}"
        )

    data = {
        "checkpoint": checkpoint_record(checkpoint),
        "target": str(place),
        "tensors": count,
        "bytes": written,
    }
    call.answer("restore", data, show)
