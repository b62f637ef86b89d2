"""Progress on stderr, and only where stderr is a terminal. rich is imported here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ckpt_core.cli.output import Output

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(output: Output, word: str) -> Iterator[Callable[[int, int], None] | None]:
    """What to call with bytes done and bytes in all; None where no progress is to be seen."""
    if not output.progress:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(word), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(word, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield advance
