"""`ckpt cat`: one value, one tensor or one branch of a state, or the manifest, on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, complete_references, ranking_options, trusted_option
from ckpt_core.errors import UsageError

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.model import Checkpoint
    from ckpt_core.pipeline.opened import CheckpointReader, LazyTensor

_LISTED = 1000


@command(
    "cat",
    examples=[
        ("ckpt cat latest config/lr", "a plain value"),
        ("ckpt cat latest config", "all that is under config"),
        ("ckpt cat digits@best model/fc.weight --metric val_loss", "a tensor: statistics and values"),
        ("ckpt cat latest model/fc.weight --slice 0:2,:4", "a part of it; only its chunks are read"),
        ("ckpt cat latest --manifest | jq .packs", "the document that makes the checkpoint"),
    ],
)
@click.argument("reference", metavar="REF", shell_complete=complete_references)
@click.argument("path", metavar="[PATH]", required=False)
@click.option(
    "--slice", "part", metavar="SLICE", help="Which part of a tensor, as numpy's: 0:10 or 0:10,:,3."
)
@click.option("--all", "everything", is_flag=True, help="Write all values of a large tensor.")
@click.option("--manifest", is_flag=True, help="Write the checkpoint's manifest.")
@ranking_options
@trusted_option
def cat(
    call: Call, reference: str, path: str | None, part: str | None, everything: bool, manifest: bool
) -> None:
    """Write a value, a tensor or a branch of a state.

    `ckpt show REF --leaves` lists the paths. Every byte that is read is checked against its digest.
    Without PATH: all plain values of the state.
    """
    if manifest and (path is not None or part is not None):
        raise UsageError("--manifest writes the whole manifest: leave PATH and --slice out", kind="usage")
    checkpoint, document = call.readable(reference)
    if manifest:
        _manifest(call, checkpoint)
        return
    from ckpt_core.pipeline.opened import open_checkpoint

    repository = call.workspace.repository
    with open_checkpoint(repository, document, checkpoint, framework="numpy") as reader:
        if path is not None and path in reader.tensors():
            _tensor(call, reader.tensor(path), part, everything)
        elif part is not None:
            raise UsageError(f"--slice is for tensors, and {path or 'the state'!r} is none", kind="slice")
        else:
            _value(call, reader, path)


def _manifest(call: Call, checkpoint: Checkpoint) -> None:
    import json

    stored = json.loads(call.workspace.repository.store.get(checkpoint.key))
    if call.json:
        call.output.document("cat", {"manifest": stored})
    else:
        for line in json.dumps(stored, indent=2).splitlines():
            call.output.line(line)


def _value(call: Call, reader: CheckpointReader, path: str | None) -> None:
    import json

    from ckpt_core.cli.output import jsonable
    from ckpt_core.maintenance.leaves import branch, plain

    tree = reader.manifest.state
    try:
        node = tree if path is None else branch(tree, path)
    except KeyError:
        reader[path or ""]  # raises NotFoundError, which says what there is
        raise
    value = plain(node, reader.manifest)
    if call.json:
        call.output.document("cat", {"path": path, "value": value})
    elif isinstance(value, (dict, list)):
        for line in json.dumps(jsonable(value), indent=2, ensure_ascii=False).splitlines():
            call.output.line(line)
    else:
        for line in str(value).split("\n") if isinstance(value, str) else [json.dumps(jsonable(value))]:
            call.output.line(line)


def _tensor(call: Call, tensor: LazyTensor, part: str | None, everything: bool) -> None:
    import numpy as np

    from ckpt_core.cli.arrays import listed, parse_slice, pieces, statistics, text_of

    key = None if part is None else parse_slice(part)
    if key is None and tensor.nbytes > _LARGE and not everything:
        found = statistics(pieces(tensor, None))
        values = None
    else:
        chosen = list(pieces(tensor, key))
        values = chosen[0] if len(chosen) == 1 else np.concatenate(chosen)
        found = statistics([values])
    facts = {"path": tensor.path, "dtype": tensor.dtype, "shape": list(tensor.shape), "bytes": tensor.nbytes}
    if call.json:
        few = values is not None and (values.size <= _LISTED or everything or part is not None)
        call.output.document(
            "cat",
            facts
            | {"slice": part, "slice_shape": None if part is None or values is None else list(values.shape)}
            | {
                "statistics": _statistics(found),
                "values": listed(values) if few and values is not None else None,
            },
        )
        return
    if not call.quiet:
        _facts(call.output, facts, part, None if values is None else list(values.shape), _statistics(found))
    if values is None:
        call.output.line(f"(values not shown: {tensor.nbytes:,} bytes; --slice shows some, --all shows all)")
        return
    for line in text_of(values, call.output.width, everything).splitlines():
        call.output.line(line)


_LARGE = 256 << 20


def _statistics(found: Any) -> dict[str, Any]:
    return {
        "elements": found.elements,
        "min": found.minimum,
        "max": found.maximum,
        "mean": found.mean,
        "std": found.std,
        "l2": found.norm,
        "zeros": found.zeros,
        "nan": found.nan,
        "inf": found.infinite,
    }


def _facts(
    output: Output, facts: dict[str, Any], part: str | None, shape: list[int] | None, found: dict[str, Any]
) -> None:
    from ckpt_core.cli.tables import Span
    from ckpt_core.cli.words import number, size

    sliced = f", [{part.strip('[]')}] is {shape}" if part else ""
    output.line(
        Span(facts["path"], "bold"), f"  {facts['dtype']} {facts['shape']}, {size(facts['bytes'])}{sliced}"
    )
    words = [
        f"{name} {number(found[name])}"
        for name in ("min", "max", "mean", "std", "l2")
        if found[name] is not None
    ]
    words += [f"{found[name]:,} {name}" for name in ("zeros", "nan", "inf") if found[name]]
    if words:
        output.line(Span(", ".join(words), "dim"))
