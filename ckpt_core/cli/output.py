"""Where words and documents go: one JSON document or lines on stdout, notes and warnings on stderr.

Every line passes through `escape`, so that no caller can forget to.
"""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TextIO

from ckpt_core.cli.escape import escape
from ckpt_core.cli.tables import Cell, Column, Span, layout
from ckpt_core.config import environment

__all__ = ["VERSION", "Output", "jsonable"]

VERSION = 1
"""Of the JSON documents: it rises when a member changes its meaning or goes; new members may come."""

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class Output:
    """The two streams of one call. With `json` nothing but a document goes to stdout."""

    def __init__(self) -> None:
        self.json = False
        self.quiet = False

    # -- what the streams are --------------------------------------------------------------------

    @property
    def width(self) -> int | None:
        """Columns of the terminal; None where stdout is not one, so that nothing is cut."""
        return shutil.get_terminal_size().columns if _is_terminal(sys.stdout) else None

    @property
    def progress(self) -> bool:
        """Whether progress may be drawn on stderr."""
        return _is_terminal(sys.stderr) and not self.quiet and environment("TERM") != "dumb"

    @property
    def can_ask(self) -> bool:
        """Whether somebody sits at the terminal who can answer a question."""
        return _is_terminal(sys.stdin) and _is_terminal(sys.stderr)

    # -- lines for people ------------------------------------------------------------------------

    def line(self, *parts: Cell) -> None:
        """One line on stdout."""
        _write(sys.stdout, [parts])

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
        """A table on stdout; nothing where there are no rows."""
        if rows:
            _write(sys.stdout, layout(columns, rows, self.width))

    def note(self, text: str) -> None:
        """What is good to know, on stderr."""
        if not self.quiet:
            _write(sys.stderr, [[Span("note: ", "dim"), text]])

    def warning(self, text: str) -> None:
        """What should not be overlooked, on stderr."""
        if not self.quiet:
            _write(sys.stderr, [[Span("warning: ", "yellow"), text]])

    def error(self, text: str) -> None:
        """The one line that says why a command failed, on stderr."""
        _write(sys.stderr, [[Span("error: ", "red"), text]])

    # -- documents for programs ------------------------------------------------------------------

    def document(self, command: str, data: Any) -> None:
        """`{"version":1,"command":…,"data":…}` on stdout: indented on a terminal, else on one line."""
        self._dump({"version": VERSION, "command": command, "data": jsonable(data)})

    def error_document(self, error: dict[str, Any]) -> None:
        """`{"version":1,"error":{"kind":…,"message":…}}` on stdout."""
        self._dump({"version": VERSION, "error": jsonable(error)})

    def _dump(self, document: dict[str, Any]) -> None:
        # ASCII: no name in it can do anything to a terminal, and no encoding of stdout can refuse it.
        pretty = _is_terminal(sys.stdout)
        text = json.dumps(
            document, allow_nan=False, indent=2 if pretty else None, separators=None if pretty else (",", ":")
        )
        sys.stdout.write(text + "\n")

    @staticmethod
    def flush() -> None:
        """Sends what was written so far. Raises BrokenPipeError where nobody reads any more."""
        sys.stdout.flush()

    @staticmethod
    def prepare() -> None:
        """Lets the streams write what their encoding lacks as `\\u…` rather than fail."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                with suppress(ValueError, OSError):
                    stream.reconfigure(errors="backslashreplace")


def jsonable(value: Any) -> Any:
    """Plain containers and values as JSON has them: numbers that it lacks become `nan`, `inf`, `-inf`,
    bytes `{"$bytes": base64}`, sets lists in order, and anything else its text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [jsonable(item) for item in sorted(value, key=repr)]
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    inner = value.item() if getattr(value, "ndim", None) == 0 else None  # a numpy scalar
    return jsonable(inner) if isinstance(inner, (bool, int, float, str, bytes)) else str(value)


def _write(stream: TextIO, lines: Iterable[Sequence[Cell]]) -> None:
    styled = _is_terminal(stream) and environment("NO_COLOR") is None and environment("TERM") != "dumb"
    texts = ("".join(_shown(part, styled) for part in parts).rstrip(" ") for parts in lines)
    stream.write("".join(f"{text}\n" for text in texts))


def _shown(part: Cell, styled: bool) -> str:
    if not isinstance(part, Span):
        return escape(part)
    code = _CODES.get(part.style)
    if not styled or code is None or not part.text:
        return escape(part.text)
    return f"\x1b[{code}m{escape(part.text)}\x1b[0m"


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False
