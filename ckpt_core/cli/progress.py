"""Progress on stderr, and only where stderr is a terminal. rich is imported here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ckpt_core import clock
from ckpt_core.cli.output import Output

__all__ = ["progress_bar"]

PATIENCE = 0.5
"""Seconds before a bar is drawn: what is done by then needs none."""


@contextmanager
def progress_bar(output: Output, word: str) -> Iterator[Callable[[int, int], None] | None]:
    """What to call with bytes done and bytes in all; None where no progress is to be seen."""
    if not output.progress:
        yield None
        return
    begun = clock.monotonic()
    drawing: list[Any] = []
    with ExitStack() as stack:

        def advance(done: int, total: int) -> None:
            if not drawing and clock.monotonic() - begun >= PATIENCE:
                drawing.append(stack.enter_context(_bar(word)))
            for bar in drawing:
                bar.update(bar.task_ids[0], completed=done, total=total)

        yield advance


def _bar(word: str) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(word), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(word, total=None)
    return bar
