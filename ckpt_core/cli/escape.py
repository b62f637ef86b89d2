"""Text from files made fit for a terminal: nothing in a name can move the cursor or reverse the line."""

from __future__ import annotations

import unicodedata

__all__ = ["escape", "width_of"]


def escape(text: str) -> str:
    """`text` with every character that is not seen as itself written as `\\u001b`. Safe to apply twice.

    These are control and format characters (bidi marks, zero-width joiners), surrogates, private and
    unassigned ones, line ends, and every space but the common one: what `str.isprintable` says no to.
    """
    if text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def width_of(text: str) -> int:
    """Columns that escaped text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_width(character) for character in text)


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
