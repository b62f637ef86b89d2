"""Identifiers: ULIDs, which sort by the time at which they were made.

The one place where the engine draws random bytes.
Source of the layout: https://github.com/ulid/spec (48 bits of milliseconds, 80 random bits,
Crockford's base 32).
"""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime

from ckpt_core import clock

__all__ = ["is_ulid", "new_ulid", "secret", "time_of", "token"]

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LENGTH = 26
_STEP = (1 << 64) - 1
_lock = threading.Lock()
_last = 0


def new_ulid() -> str:
    """A new ULID of 26 characters, greater than every one this process made before.

    Also when the wall clock steps back: then it goes on from the last one, by a random step, so that
    processes forked from this one do not count along the same numbers.
    """
    global _last
    milliseconds = int(clock.now().timestamp() * 1000)
    drawn = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds << 80) | drawn
    with _lock:
        value = value if value > _last else _last + 1 + (drawn & _STEP)
        _last = value
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


def is_ulid(text: str) -> bool:
    """Whether `text` has the form of a ULID, as `new_ulid` writes it."""
    return len(text) == _LENGTH and text[0] <= "7" and all(c in _ALPHABET for c in text)


def time_of(ulid: str) -> datetime:
    """The moment, to the millisecond, that a ULID carries. Raises ValueError where it is none."""
    if not is_ulid(ulid):
        raise ValueError(f"{ulid!r} is not a ULID")
    milliseconds = 0
    for character in ulid[:10]:
        milliseconds = milliseconds * 32 + _ALPHABET.index(character)
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def secret() -> str:
    """Sixty-four random hexadecimal characters, which nobody can guess."""
    return os.urandom(32).hex()


def token() -> str:
    """Sixteen random hexadecimal characters, for names that nobody else will choose."""
    return os.urandom(8).hex()
