"""`ckpt show`: everything that is known of one checkpoint without reading its data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, complete_references, ranking_options, trusted_option

if TYPE_CHECKING:
    from ckpt_core.catalog import IntegrityCheck
    from ckpt_core.cli.output import Output
    from ckpt_core.format.documents import Manifest
    from ckpt_core.model import Checkpoint
    from ckpt_core.repository import Committed


_VERDICTS = {True: ("it fits", "green"), False: ("IT DOES NOT FIT", "red"), None: ("not checked", "")}


@command(
    "show",
    examples=[
        ("ckpt show latest", ""),
        ("ckpt show digits@best --metric val_loss", ""),
        ("ckpt show latest --leaves", "with every tensor and value"),
    ],
)
@click.argument("reference", metavar="[REF]", default="latest", shell_complete=complete_references)
@click.option("--leaves", is_flag=True, help="List every tensor and plain value of the state.")
@ranking_options
@trusted_option
def show(call: Call, reference: str, leaves: bool) -> None:
    """Show all that is known of one checkpoint.

    Where it comes from, its metrics, what it holds and what it needs. Left out, REF is latest.
    """
    from ckpt_core.cli.records import checkpoint_record
    from ckpt_core.maintenance.leaves import plain_leaves, tensor_specs
    from ckpt_core.tree import dtypes

    checkpoint = call.resolve(reference)
    committed = call.workspace.repository.read(checkpoint.key)
    manifest = committed.manifest
    check = _last_check(call, checkpoint)
    tensors = [
        {
            "path": path,
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "bytes": dtypes.nbytes(spec),
            "index": index,
        }
        for path, (index, spec) in tensor_specs(manifest).items()
    ]
    values = [{"path": path, "value": value} for path, value in plain_leaves(manifest.state)]
    data = checkpoint_record(checkpoint) | {
        "writer": manifest.writer,
        "packs": [{"name": pack.name, "bytes": pack.size} for pack in manifest.packs],
        "signatures": _signatures(call, committed),
        "branches": _branches(tensors, values),
        "verified": None
        if check is None
        else {"outcome": check.outcome, "kind": check.kind, "at": str(check.at)},
    }
    if leaves:
        data |= {"tensor_list": tensors, "values": values}
    call.answer(
        "show",
        data,
        lambda output: _show(output, checkpoint, manifest, data, check),
        quiet=[checkpoint.id],
    )


def _signatures(call: Call, committed: Committed) -> list[dict[str, Any]]:
    """Who signed it: whether each signature fits (None where that cannot be told here), and the file of the key
    where it is trusted."""
    from ckpt_core.errors import CorruptionError, MissingExtraError

    repository = call.workspace.repository
    found: list[dict[str, Any]] = []
    try:
        for row in repository.signatures.of(committed):
            found.append({"key": row.key, "fits": None, "trusted": None})
            if repository.trusted is not None:
                found[-1]["trusted"] = repository.trusted.keys.get(row.key)
            found[-1]["fits"] = repository.signatures.fits(committed, row)
    except (CorruptionError, MissingExtraError) as error:
        call.output.warning(str(error))
    return found


def _last_check(call: Call, checkpoint: Checkpoint) -> IntegrityCheck | None:
    """What the newest verification said of it, be it of this checkpoint or of the whole store."""
    from ckpt_core.errors import CatalogError, FormatError

    try:
        catalog = call.workspace.index.catalog()
        own = catalog.checks(checkpoint.id, limit=1)
        whole = [
            check for check in catalog.checks(limit=100) if check.checkpoint is None and check.outcome == "ok"
        ]
    except (CatalogError, FormatError):
        return None
    later = [check for check in whole if check.at > checkpoint.created_at]
    return max([*own, *later], key=lambda check: check.at, default=None)


def _branches(tensors: list[dict[str, Any]], values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What stands under each topmost name of the state."""
    found: dict[str, dict[str, Any]] = {}
    counted: set[int] = set()
    for leaf in [*tensors, *values]:
        name = leaf["path"].partition("/")[0]
        row = found.setdefault(name, {"name": name, "tensors": 0, "values": 0, "bytes": 0})
        row["tensors" if "dtype" in leaf else "values"] += 1
        if "dtype" in leaf and leaf["index"] not in counted:
            counted.add(leaf["index"])
            row["bytes"] += leaf["bytes"]
    return list(found.values())


def _show(
    output: Output,
    checkpoint: Checkpoint,
    manifest: Manifest,
    data: dict[str, Any],
    check: IntegrityCheck | None,
) -> None:
    from ckpt_core.cli.tables import Span
    from ckpt_core.cli.words import counted, number, size, when

    def row(name: str, *parts: Any) -> None:
        output.line(Span(f"{name:<12}", "bold"), *parts)

    attempt = checkpoint.attempt
    row("id", Span(checkpoint.id, "yellow"))
    row("experiment", checkpoint.experiment)
    row("step", str(checkpoint.step))
    row("saved", when(checkpoint.created_at))
    origin = (
        "began from nothing"
        if attempt.resumed_from is None
        else (f"resumed from step {attempt.resumed_step} ({attempt.resumed_from})")
    )
    row("attempt", f"{attempt.number}, {origin}")
    if checkpoint.parent:
        row("parent", checkpoint.parent)
    if checkpoint.tags:
        row("tags", Span(", ".join(checkpoint.tags), "green"))
    if checkpoint.pinned:
        row("pinned", "yes: no retention policy deletes it")
    for i, (name, value) in enumerate(checkpoint.metrics.items()):
        row("metrics" if i == 0 else "", f"{name} = {number(value)}")
    row(
        "size",
        f"{size(checkpoint.logical_bytes)} in {counted(checkpoint.tensor_count, 'tensor')}, "
        f"{size(checkpoint.written_bytes)} newly written",
    )
    own = sum(1 for pack in manifest.packs if f"/{checkpoint.id}-" in pack.name)
    row("packs", f"{len(manifest.packs)}, {own} of its own")
    for i, branch in enumerate(data["branches"]):
        facts = (
            [counted(branch["tensors"], "tensor") + f" ({size(branch['bytes'])})"]
            if branch["tensors"]
            else []
        )
        facts += [counted(branch["values"], "value")] if branch["values"] else []
        row("state" if i == 0 else "", f"{branch['name'] or '(the state itself)'}: {', '.join(facts)}")
    for i, signature in enumerate(data["signatures"]):
        word, colour = _VERDICTS[signature["fits"]]
        trusted = f", trusted as {signature['trusted']}" if signature["trusted"] else ""
        row("signed by" if i == 0 else "", f"{signature['key']}: ", Span(word, colour), trusted)
    row("writer", _writer(manifest.writer))
    if manifest.writer.get("git_commit"):
        row("code", f"git commit {manifest.writer['git_commit']}")
    if check is not None:
        row(
            "verified",
            f"{when(check.at)}: ",
            Span(check.outcome, "green" if check.outcome == "ok" else "red"),
        )
    if "tensor_list" in data:
        _leaves(output, data)


def _writer(writer: dict[str, Any]) -> str:
    frameworks = writer.get("frameworks")
    versions = {"ckpt-core": writer.get("ckpt_core"), "Python": writer.get("python")}
    versions |= frameworks if isinstance(frameworks, dict) else {}
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return f"{writer.get('host', 'unknown')}, process {writer.get('pid', 'unknown')}; {known}"


def _leaves(output: Output, data: dict[str, Any]) -> None:
    from ckpt_core.cli.tables import Column
    from ckpt_core.cli.words import size

    rows = [
        [t["path"], t["dtype"], "×".join(map(str, t["shape"])) or "scalar", size(t["bytes"])]
        for t in data["tensor_list"]
    ]
    output.line()
    output.table(
        [Column("TENSOR", cut=True), Column("TYPE"), Column("SHAPE"), Column("SIZE", right=True)], rows
    )
    if rows and data["values"]:
        output.line()
    values = [[value["path"], repr(value["value"])] for value in data["values"]]
    output.table([Column("VALUE", cut=True), Column("IS", cut=True)], values)
