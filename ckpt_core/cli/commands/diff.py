"""`ckpt diff`: what changed between two checkpoints, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, complete_references, ranking_options, trusted_option

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.format.documents import Manifest
    from ckpt_core.maintenance.difference import Difference, TensorChange, ValueChange
    from ckpt_core.model import Checkpoint, TensorSpec

    Found = tuple[Checkpoint, Manifest]

_SHOWN = 40


@command(
    "diff",
    examples=[
        ("ckpt diff step=100 step=200", ""),
        ("ckpt diff latest", "what the newest changed of its parent"),
        ("ckpt diff digits@best mnist@best --include model", "two experiments, the model alone"),
        ("ckpt diff step=100 step=200 --exit-code -q", "1 where they differ, for scripts"),
    ],
)
@click.argument("old", metavar="OLD", shell_complete=complete_references)
@click.argument("new", metavar="[NEW]", required=False, shell_complete=complete_references)
@click.option(
    "--include", multiple=True, metavar="PATH|PATTERN", help="Only these tensors and values. May be repeated."
)
@click.option("--no-measure", is_flag=True, help="Only tell what changed: no tensor is read.")
@click.option("--all", "everything", is_flag=True, help=f"Show every change, not the {_SHOWN} largest.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 where states, configuration or metrics differ.")
@ranking_options
@trusted_option
def diff(
    call: Call,
    old: str,
    new: str | None,
    include: tuple[str, ...],
    no_measure: bool,
    everything: bool,
    exit_code: bool,
) -> int:
    """Compare two checkpoints.

    Tensors by how much they changed, plain values (the configuration) and metrics side by side. With
    OLD alone it is compared with its parent. Digests tell equal tensors, which are then not read. MAX
    ABS is the largest absolute change of an element, REL L2 the norm of the change over that of the old
    tensor, CHANGED the share of elements whose bytes differ.
    """
    from ckpt_core.cli.progress import progress_bar
    from ckpt_core.cli.records import checkpoint_record
    from ckpt_core.maintenance.difference import difference

    (before, old_manifest), (after, new_manifest) = _pair(call, old, new)
    repository = call.workspace.repository
    with progress_bar(call.output, "reading") as progress:
        found = difference(
            repository,
            old_manifest,
            new_manifest,
            include=include or None,
            measure=not no_measure,
            progress=progress,
        )
    same = found.same_state and not found.metrics
    data = {
        "old": checkpoint_record(before),
        "new": checkpoint_record(after),
        "same": same,
        "same_tensors": found.same_tensors,
        "same_values": found.same_values,
        "tensors": [_tensor_record(change) for change in found.tensors],
        "values": [_value_record(change, "path") for change in found.values],
        "metrics": [_value_record(change, "name") for change in found.metrics],
    }
    call.answer(
        "diff",
        data,
        lambda output: _show(output, before, after, found, everything),
        quiet=[*(change.path for change in found.tensors), *(change.path for change in found.values)],
    )
    return 1 if exit_code and not same else 0


def _pair(call: Call, old: str, new: str | None) -> tuple[Found, Found]:
    from ckpt_core.errors import NotFoundError

    found = call.readable(old)
    if new is not None:
        return found, call.readable(new)
    first, _ = found
    if first.parent is None:
        raise NotFoundError(
            f"{first.id} (step {first.step}) began from nothing and has no parent: name two checkpoints"
        )
    try:
        return call.readable(first.parent), found
    except NotFoundError:
        raise NotFoundError(
            f"the parent of {first.id} (step {first.step}) is gone: name two checkpoints", parent=first.parent
        ) from None


def _spec(spec: TensorSpec | None) -> dict[str, Any] | None:
    return None if spec is None else {"dtype": spec.dtype, "shape": list(spec.shape)}


def _tensor_record(change: TensorChange) -> dict[str, Any]:
    return {
        "path": change.path,
        "change": change.change,
        "old": _spec(change.old),
        "new": _spec(change.new),
        "elements": change.elements,
        "changed": change.changed,
        "share": change.share,
        "max_abs": change.max_abs,
        "relative_l2": change.relative_l2,
        "not_finite": change.not_finite,
    }


def _value_record(change: ValueChange, name: str) -> dict[str, Any]:
    from ckpt_core.maintenance.difference import ABSENT

    sides = {"old": change.old, "new": change.new}
    return {name: change.path} | {side: value for side, value in sides.items() if value is not ABSENT}


def _show(output: Output, before: Checkpoint, after: Checkpoint, found: Difference, everything: bool) -> None:
    from ckpt_core.cli.tables import Span
    from ckpt_core.cli.words import counted, when

    for sign, style, checkpoint in (("-", "red", before), ("+", "green", after)):
        where = f"{sign} {checkpoint.experiment} step {checkpoint.step}"
        output.line(Span(where, style), f"  {checkpoint.id}  {when(checkpoint.created_at)}")
    output.line()
    if found.tensors:
        _tensors(output, found, everything)
    if found.same_tensors or found.tensors:
        output.line(
            f"{counted(len(found.tensors), 'tensor')} differ{'s' if len(found.tensors) == 1 else ''}, "
            f"{found.same_tensors:,} {'is' if found.same_tensors == 1 else 'are'} the same"
        )
    if not found.values and found.same_values:
        output.line(f"{counted(found.same_values, 'plain value')}, all the same")
    for title, changes in (("VALUE", found.values), ("METRIC", found.metrics)):
        if changes:
            output.line()
            _values(output, title, changes, everything)


def _tensors(output: Output, found: Difference, everything: bool) -> None:
    from ckpt_core.cli.tables import Column
    from ckpt_core.cli.words import number, share

    changes = sorted(
        found.tensors, key=lambda c: -(c.relative_l2 if c.relative_l2 is not None else float("inf"))
    )
    shown = changes if everything else changes[:_SHOWN]
    rows = [
        [
            change.path,
            _what(change),
            "" if change.max_abs is None else number(change.max_abs),
            "" if change.relative_l2 is None else number(change.relative_l2),
            "" if change.share is None else share(change.share),
            f"{change.not_finite} not finite" if change.not_finite else "",
        ]
        for change in shown
    ]
    columns = [
        Column("TENSOR", cut=True),
        Column("CHANGE", cut=True),
        Column("MAX ABS", right=True),
        Column("REL L2", right=True),
        Column("CHANGED", right=True),
        Column(""),
    ]
    output.table(columns, rows)
    if len(shown) < len(changes):
        output.line(f"... and {len(changes) - len(shown)} smaller changes (--all shows them)")


def _what(change: TensorChange) -> str:
    old, new = change.old, change.new
    if change.change == "reshaped" and old and new:
        return f"{_shape(old.shape)} -> {_shape(new.shape)}"
    if change.change == "retyped" and old and new:
        return f"{old.dtype} -> {new.dtype}"
    known = new or old
    if change.change in ("added", "removed") and known:
        return f"{change.change}, {known.dtype} {_shape(known.shape)}"
    return change.change


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _values(output: Output, title: str, changes: Sequence[ValueChange], everything: bool) -> None:
    from ckpt_core.cli.tables import Column
    from ckpt_core.cli.words import number
    from ckpt_core.maintenance.difference import ABSENT

    def text(value: Any) -> str:
        if value is ABSENT:
            return "-"
        return number(value) if title == "METRIC" else repr(value)

    def gap(change: ValueChange) -> str:
        if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (change.old, change.new)):
            return ""
        try:
            return f"{change.new - change.old:+.5g}"
        except OverflowError:  # whole numbers of more than 308 digits
            return ""

    shown = changes if everything else changes[:_SHOWN]
    rows = [[change.path, text(change.old), text(change.new), gap(change)] for change in shown]
    columns = [
        Column(title, cut=True),
        Column("OLD", cut=True),
        Column("NEW", cut=True),
        Column("", right=True),
    ]
    output.table(columns, rows)
    if len(shown) < len(changes):
        output.line(f"... and {len(changes) - len(shown)} more (--all shows them)")
