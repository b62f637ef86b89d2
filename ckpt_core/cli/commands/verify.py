"""`ckpt verify`: whether every byte is the byte that was written, and what damage hurts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckpt_core.cli import exit_codes
from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, complete_references, ranking_options, trusted_option
from ckpt_core.errors import UsageError

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.maintenance.verify import VerifyReport
    from ckpt_core.model import Checkpoint


@command(
    "verify",
    examples=[
        ("ckpt verify", "every byte of the store"),
        ("ckpt verify latest digits@best --metric val_loss", "these two"),
        ("ckpt verify --trusted-key alice.pem.pub", "and whether she signed each checkpoint"),
        ("ckpt verify --headers-only", "quickly: documents and headers, no data"),
        ("ckpt verify --read-data 5%", "every day: in 20 days all data was read"),
    ],
)
@click.argument("references", metavar="[REF]...", nargs=-1, shell_complete=complete_references)
@click.option("--headers-only", is_flag=True, help="Check documents and pack headers, and read no data.")
@click.option(
    "--read-data",
    metavar="[SHARE%]",
    is_flag=False,
    flag_value="100%",
    help="Of the whole store, read so much of the data: what was not read for longest.  [default: 100%]",
)
@ranking_options
@trusted_option
def verify(call: Call, references: tuple[str, ...], headers_only: bool, read_data: str | None) -> int:
    """Check checkpoints, or everything in the store.

    Exits with 4 where anything is damaged. Nothing is changed but the record in the catalog of what was
    found.
    """
    from ckpt_core.cli.progress import progress_bar

    if read_data is not None and headers_only:
        raise UsageError("--read-data and --headers-only contradict each other", kind="option")
    share = 1.0 if read_data is None else _share(read_data)
    if references and share < 1:
        raise UsageError("a share of the data is read of the whole store: leave out REF", kind="option")
    workspace = call.workspace
    chosen = list({c.id: c for c in map(call.resolve, references)}.values()) if references else None
    known = {c.id: c for c in workspace.index.checkpoints()}
    with progress_bar(call.output, "verifying") as progress:
        report = workspace.verify(chosen, read_data=not headers_only, share=share, progress=progress)
    data = {
        "ok": report.ok,
        "read_data": report.read_data,
        "checkpoints": report.checkpoints,
        "packs": report.packs,
        "bytes_read": report.bytes_read,
        "problems": [
            {"kind": p.kind, "key": p.key, "detail": p.detail, "checkpoints": list(p.checkpoints)}
            for p in report.problems
        ],
        "damaged": [
            {"id": id_, "experiment": known[id_].experiment, "step": known[id_].step}
            if id_ in known
            else {"id": id_}
            for id_ in report.damaged
        ],
    }
    call.answer("verify", data, lambda output: _show(output, report, known), quiet=report.damaged)
    return exit_codes.OK if report.ok else exit_codes.CORRUPT


def _share(text: str) -> float:
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = 0.0
    if not 0 < percent <= 100:
        raise UsageError(
            f"--read-data {text!r} should be a share over 0 and up to 100%, as 5%", kind="option"
        )
    return percent / 100


def _show(output: Output, report: VerifyReport, known: dict[str, Checkpoint]) -> None:
    from ckpt_core.cli.tables import Span
    from ckpt_core.cli.words import counted, size

    if report.read_data or not report.sizes:
        what = "read and checked" if report.read_data else "checked (headers only)"
    else:
        what = f"checked, {counted(len(report.sizes), 'pack')} of them read"
    counts = (
        counted(report.checkpoints, "checkpoint"),
        counted(report.packs, "pack"),
        size(report.bytes_read),
    )
    looked = f"{', '.join(counts)} {what}"
    if report.ok:
        output.line(f"{looked}: ", Span("no damage", "green"))
        return
    for problem in report.problems:
        output.line(Span(f"damaged ({problem.kind})", "red"), f"  {problem.key}")
        output.line(f"    {problem.detail}")
        hurt = [_name(id_, known) for id_ in problem.checkpoints]
        output.line(f"    hurts {', '.join(hurt)}" if hurt else "    hurts no checkpoint")
    output.line()
    output.line(f"{looked}: ", Span(counted(len(report.problems), "damage", "damages"), "red"))
    whole = [c for c in known.values() if c.id not in report.damaged]
    if not report.damaged:
        output.line("No checkpoint needs what is damaged.")
    else:
        output.line(f"{counted(len(report.damaged), 'checkpoint')} cannot be loaded whole; {len(whole)} can.")
        if all(problem.kind == "signature" for problem in report.problems):
            output.line("`ckpt sign` signs what you know to be yours.")
        else:
            output.line("`ckpt repair` heals what can be healed, and puts aside what cannot.")


def _name(id_: str, known: dict[str, Checkpoint]) -> str:
    checkpoint = known.get(id_)
    return f"{checkpoint.experiment} step {checkpoint.step} ({id_})" if checkpoint else id_
