"""`ckpt hooks`: which hooks run on which event, in which order, and who has named them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli import exit_codes
from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command
from ckpt_core.errors import CkptError, NotFoundError

if TYPE_CHECKING:
    from ckpt_core.catalog.audit import AuditEntry
    from ckpt_core.cli.output import Output
    from ckpt_core.hooks import BaseHook
    from ckpt_core.hooks.configured import HookFile

_RUNNING = ("active", "left out")
_STYLES = {"active": "green", "left out": "red", "broken": "red", "installed": "dim", "disabled": "dim"}
_COUNTS = ("calls", "failures", "timeouts", "vetoes", "dropped", "skipped", "seconds", "last_error")


@dataclass(frozen=True, slots=True)
class _Listed:
    """One hook. `why`: of what is broken or left out."""

    name: str
    source: str
    priority: str
    events: tuple[str, ...]
    state: str
    why: str | None = None
    counts: Mapping[str, Any] | None = None


@command(
    "hooks",
    examples=[
        ("ckpt hooks", ""),
        ("ckpt hooks digits --json", "those of the last run of digits, with their statistics"),
    ],
)
@click.argument("experiment", required=False)
def hooks(call: Call, experiment: str | None) -> int:
    """Show which hooks run on which event, in which order.

    Those of the last run (of EXPERIMENT, if one is named), as it has written them down with its first save and at
    its end; those that a ckpt.toml names for the next; and what else is installed. Exits with 1 where one that the
    file names cannot be made.
    """
    file, run, note = _found(call, experiment)
    listed = [*_of_run(run), *_of_file(file, run)]
    listed += _installed({each.name for each in listed} | {each.use for each in (file.hooks if file else ())})
    rows = list(_rows(listed))
    data = {
        "file": str(file.path) if file else None,
        "run": {"experiment": run.subject, "attempt": run.detail.get("attempt"), "state": run.outcome}
        if run
        else None,
        "hooks": rows,
    }
    call.answer("hooks", data, lambda output: _show(output, rows, data), quiet=_names(rows))
    if note:
        call.output.warning(note)
    broken = any(each.state == "broken" and each.source == "ckpt.toml" for each in listed)
    return exit_codes.FAILED if broken else exit_codes.OK


def _found(call: Call, experiment: str | None) -> tuple[HookFile | None, AuditEntry | None, str | None]:
    """The file that holds here, what the last run has written down, and why that cannot be told."""
    from ckpt_core.hooks.configured import find_hook_file
    from ckpt_core.pipeline.hooking import hook_file_for

    try:
        workspace = call.workspace
    except NotFoundError as error:
        if error.kind != "store" or call.store is not None:
            raise
        return find_hook_file(None), None, None  # without a store, of a run to come
    file = hook_file_for(workspace.repository.store, None)
    try:
        runs = workspace.index.catalog().audit_log(1, ["hooks"], experiment)
    except CkptError as error:
        return file, None, f"which hooks have run cannot be told: {error}"
    return file, runs[0] if runs else None, None


def _of_run(run: AuditEntry | None) -> Iterator[_Listed]:
    for row in run.detail.get("hooks", ()) if run is not None else ():
        left_out = row.get("circuit") == "open"
        counts = {name: row.get(name) for name in _COUNTS}
        yield _Listed(
            str(row.get("name")), str(row.get("source")), str(row.get("priority")),
            tuple(map(str, row.get("events", ()))), "left out" if left_out else "active",
            row.get("last_error"), counts,
        )  # fmt: skip


def _of_file(file: HookFile | None, run: AuditEntry | None) -> Iterator[_Listed]:
    """What the file names, but for what has run already."""
    ran = {each.name for each in _of_run(run) if each.source == "ckpt.toml"}
    for entry in file.hooks if file is not None else ():
        assert file is not None
        if entry.enabled and entry.options.get("name", entry.use) in ran:
            continue
        try:
            yield _listed(file.make(entry), "ckpt.toml", "active" if entry.enabled else "disabled")
        except CkptError as error:
            yield _Listed(entry.use, "ckpt.toml", "", (), "broken", str(error))


def _installed(named: set[str]) -> Iterator[_Listed]:
    from ckpt_core.hooks import installed_hooks
    from ckpt_core.hooks.installed import is_own

    for name, entry in installed_hooks().items():
        if name in named:
            continue
        source = "built in" if is_own(entry) else f"entry point of {entry.dist.name if entry.dist else '?'}"
        try:
            found = entry.load()
            yield _listed(found, source, "installed", name)
        except Exception as error:  # somebody's code
            yield _Listed(name, source, "", (), "broken", f"{type(error).__name__}: {error}")


def _listed(hook: BaseHook | Any, source: str, state: str, name: str | None = None) -> _Listed:
    """A hook, or a class of hooks, by what it says of itself; a function that makes one says nothing."""
    from ckpt_core.hooks import HookPriority

    priority = getattr(hook, "priority", None)
    return _Listed(
        name or hook.name, source,
        HookPriority(priority).name.lower() if priority is not None else "",
        tuple(event.value for event in getattr(hook, "events", ())), state,
    )  # fmt: skip


def _rows(listed: list[_Listed]) -> Iterator[dict[str, Any]]:
    """A row for each event of each hook, in the order of events, and in which hooks run."""
    from ckpt_core.hooks import HookEvent, HookPriority

    ranks = {priority.name.lower(): priority for priority in HookPriority}
    running = [each for each in listed if each.state in _RUNNING]
    running.sort(key=lambda each: ranks.get(each.priority, len(ranks)))
    for event in HookEvent:
        on_it = [each for each in running if event.value in each.events]
        for order, each in enumerate(on_it, 1):
            yield _row(each, event.value, order)
        for each in listed:
            if each.state not in _RUNNING and event.value in each.events:
                yield _row(each, event.value, None)
    for each in listed:
        if not each.events:
            yield _row(each, None, None)


def _row(each: _Listed, event: str | None, order: int | None) -> dict[str, Any]:
    return {
        "event": event, "order": order, "priority": each.priority or None, "name": each.name,
        "source": each.source, "state": each.state, "reason": each.why, "statistics": each.counts,
    }  # fmt: skip


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["name"] for row in rows if row["state"] in _RUNNING))


def _show(output: Output, rows: list[dict[str, Any]], data: Mapping[str, Any]) -> None:
    from ckpt_core.cli.tables import Cell, Column, Span

    run, file = data["run"], data["file"]
    if run is not None:
        output.line(f"last run: {run['experiment']}, attempt {run['attempt']}")
    output.line(f"file: {file or 'none (no ckpt.toml here, beside the store, or named by CKPT_CONFIG)'}")
    output.line()
    columns = [
        Column("EVENT"), Column("ORDER", right=True), Column("PRIORITY"), Column("NAME", cut=True),
        Column("SOURCE", drop=1), Column("STATE"), Column("REASON", cut=True, drop=2),
    ]  # fmt: skip
    table: list[list[Cell]] = [
        [
            row["event"] or "-", "-" if row["order"] is None else str(row["order"]), row["priority"] or "-",
            Span(row["name"], "bold"), row["source"], Span(row["state"], _STYLES[row["state"]]), row["reason"] or "",
        ]
        for row in rows
    ]  # fmt: skip
    output.table(columns, table)
