"""`ckpt mirror`: how far the mirror of a store is behind, and bringing it in line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli import exit_codes
from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, yes_option
from ckpt_core.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.maintenance.mirroring import MirrorStatus, Synced
    from ckpt_core.pipeline.mirror import Mirror


@command(
    "mirror",
    examples=[
        ("ckpt mirror", "how far it is behind"),
        ("ckpt mirror sync", "bring it in line"),
        ("ckpt mirror set /backup/checkpoints", "begin one, or name another"),
    ],
)
@click.argument("action", type=click.Choice(["status", "sync", "set", "off"]), default="status")
@click.argument("place", metavar="[PATH|URL]", required=False)
@click.option("--delete", is_flag=True, help="sync: also forget there what stands there alone.")
@yes_option
def mirror(call: Call, action: str, place: str | None, delete: bool) -> int:
    """Look after the mirror: a second store that follows this one.

    `set` names its place, begins it there and copies everything; saves keep it up from then on. `sync` copies
    what it lacks and forgets there what was forgotten here. `off` ends it: the second store stays as it is.
    Exits with 3 where the mirror is behind, or something could not be copied.
    """
    if (place is None) == (action == "set") or (delete and action != "sync"):
        raise UsageError(
            "a place goes with `set` alone, and --delete with `sync` alone: ckpt mirror set PATH",
            kind="option",
        )
    if action == "off":
        return _off(call)
    link = _link(call, place)
    if action == "status":
        return _status(call, link)
    if delete and (extra := link.status().alone):
        call.confirm(f"Forget {len(extra)} checkpoints that stand on the mirror alone?")
    return _sync(call, link, delete)


def _link(call: Call, place: str | None) -> Mirror:
    workspace = call.workspace
    if place is not None:
        return workspace.set_mirror(place)
    if workspace.mirror is None:
        raise NotFoundError(
            "the store has no mirror: `ckpt mirror set PATH` begins one, as CheckpointManager(mirror=PATH) does",
            kind="mirror",
        )
    return workspace.mirror


def _status(call: Call, link: Mirror) -> int:
    status = link.status()
    data = {
        "url": status.url,
        "behind": status.behind,
        "packs": [{"name": name, "bytes": size} for name, size in status.packs],
        "checkpoints": list(status.checkpoints),
        "documents": list(status.documents),
        "forgotten": list(status.forgotten),
        "alone": list(status.alone),
    }
    call.answer("mirror", data, lambda output: _show_status(output, status), quiet=status.checkpoints)
    return exit_codes.PARTIAL if status.behind else exit_codes.OK


def _sync(call: Call, link: Mirror, delete: bool) -> int:
    from ckpt_core.cli.progress import progress_bar

    with progress_bar(call.output, "copying") as progress:
        synced = link.sync(delete=delete, progress=progress)
    data: dict[str, Any] = {
        "url": link.url,
        "packs": synced.packs,
        "bytes": synced.bytes_copied,
        "checkpoints": synced.checkpoints,
        "documents": synced.documents,
        "forgotten": synced.forgotten,
        "freed": synced.freed,
        "alone": list(synced.alone),
        "damaged": list(synced.damaged),
    }
    call.answer("mirror", data, lambda output: _show_synced(output, link, synced), quiet=synced.damaged)
    return exit_codes.PARTIAL if synced.damaged else exit_codes.OK


def _off(call: Call) -> int:
    place = call.workspace.unset_mirror()

    def show(output: Output) -> None:
        output.line(
            f"the store has no mirror any more; {place} stays as it is" if place else "there was no mirror"
        )

    call.answer("mirror", {"url": place}, show)
    return exit_codes.OK


def _show_status(output: Output, status: MirrorStatus) -> None:
    from ckpt_core.cli.tables import Span
    from ckpt_core.cli.words import counted, size

    output.line(status.url)
    if not status.behind:
        output.line(Span("in line", "green"), " by names and sizes")
    for count, word in (
        (len(status.checkpoints), "checkpoint"),
        (len(status.packs), "pack"),
        (len(status.documents), "document"),
    ):
        if count:
            output.line(Span("lacks ", "yellow"), counted(count, word))
    if status.packs:
        output.line(f"{size(sum(bytes_ for _, bytes_ in status.packs))} would travel")
    if status.forgotten:
        output.line(Span("has yet ", "yellow"), counted(len(status.forgotten), "forgotten checkpoint"))
    _show_alone(output, status.alone)


def _show_synced(output: Output, link: Mirror, synced: Synced) -> None:
    from ckpt_core.cli.words import counted, size

    output.line(
        f"{link.url}: {counted(synced.packs, 'pack')} ({size(synced.bytes_copied)}), "
        f"{counted(synced.checkpoints, 'checkpoint')} and {counted(synced.documents, 'document')} copied, "
        f"{counted(synced.forgotten, 'checkpoint')} forgotten, {size(synced.freed)} freed"
    )
    for key in synced.damaged:
        output.line(f"damaged here and not copied: {key}; `ckpt repair` heals it")
    _show_alone(output, synced.alone)


def _show_alone(output: Output, alone: tuple[str, ...]) -> None:
    from ckpt_core.cli.words import counted

    if alone:
        output.line(
            f"{counted(len(alone), 'checkpoint')} there alone: `ckpt repair` brings them back, "
            "`ckpt mirror sync --delete` forgets them"
        )
