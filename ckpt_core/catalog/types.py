"""How values of the domain become columns, alike in every database: text, moments, numbers, plain data.

What differs between databases lives in `dialect.py`; which columns there are, in `schema.py`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from numbers import Integral, Real
from typing import Any

from sqlalchemy import BigInteger, Dialect, String, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

from ckpt_core.catalog import dialect as dialects
from ckpt_core.configuration import plain_text
from ckpt_core.errors import UsageError

__all__ = [
    "ExactText",
    "LongText",
    "UtcMicroseconds",
    "as_column",
    "check_integer",
    "check_name",
    "check_uid",
    "from_json",
    "microseconds",
    "rank_of",
    "split_number",
    "tidy",
    "to_json",
    "unsplit_number",
    "untidy_number",
]

NAME_LENGTH = 255
UID_LENGTH = 64
KEY_LENGTH = 700  # the most that a unique index of MySQL takes at four bytes a character, with room to spare

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class ExactText(TypeDecorator[str]):
    """Text that compares by code points: case, accents and trailing spaces count, everywhere."""

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(dialects.exact_text(dialect, self.length))


class LongText(TypeDecorator[str]):
    """Text without a practical limit."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(dialects.long_text(dialect))


class UtcMicroseconds(TypeDecorator[datetime]):
    """A moment as whole microseconds since 1970-01-01T00:00:00Z.

    An integer, since the three databases disagree about time zones, fractions and the year 2038.
    """

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else microseconds(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _EPOCH + timedelta(microseconds=value)


def microseconds(moment: datetime) -> int:
    """What `UtcMicroseconds` stores. Raises UsageError for a moment without a time zone."""
    if moment.tzinfo is None:
        raise UsageError(f"{moment!r} has no time zone: give an aware datetime", kind="time", at=moment)
    return (moment - _EPOCH) // _MICROSECOND


def check_name(name: str, what: str, longest: int = NAME_LENGTH) -> str:
    """`name` itself, if every database can hold it and give it back. Raises UsageError.

    Nothing else is asked of a name here: it travels as a bound parameter, whatever it looks like.
    """
    if not name or len(name) > longest:
        raise UsageError(
            f"{what} must have 1 to {longest} characters, not {len(name)}: {name[:40]!a}",
            kind="name",
            name=name,
        )
    if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
        raise UsageError(f"{what} {name!a} holds a NUL or half a character", kind="name", name=name)
    return name


def check_uid(uid: str, what: str) -> str:
    """`uid` itself, if it is an identifier of printable ASCII. Raises UsageError."""
    if not (0 < len(uid) <= UID_LENGTH and uid.isascii() and uid.isprintable()):
        raise UsageError(
            f"{what} {uid[:80]!a} is no identifier: 1 to {UID_LENGTH} characters of ASCII",
            kind="name",
            name=uid,
        )
    return uid


def check_integer(number: int, what: str) -> int:
    """`number` itself, if it fits in 64 bits. Raises UsageError."""
    if not -(2**63) <= number < 2**63:
        raise UsageError(f"{what} {number} does not fit in 64 bits", kind="range", number=number)
    return int(number)


def split_number(value: float) -> tuple[float | None, str | None]:
    """A number as `(finite, special)`, one of them None: to SQLite NaN is NULL; MySQL has no infinities."""
    value = float(value)
    if math.isfinite(value):
        return value, None
    return None, "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def unsplit_number(finite: float | None, special: str | None) -> float:
    """The number that `split_number` took apart. A special word that it never wrote reads as NaN."""
    return _SPECIAL.get(special or "nan", math.nan) if finite is None else finite


def untidy_number(value: float | str) -> float:
    """A number as `tidy` wrote it."""
    return _SPECIAL.get(value, math.nan) if isinstance(value, str) else float(value)


def rank_of(value: float) -> float | None:
    """What a value is compared by: an infinity counts as the largest finite number, a NaN as nothing."""
    value = float(value)
    return None if math.isnan(value) else max(-sys.float_info.max, min(sys.float_info.max, value))


def tidy(value: Any) -> Any:
    """Plain JSON data that says what `value` says, for whatever people put in: never an error.

    Non-finite numbers become words, halves of characters escapes, unknown objects their `str`.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        whole = int(value)
        return whole if -(2**63) <= whole < 2**63 else str(whole)
    if isinstance(value, Real):
        finite, special = split_number(float(value))
        return finite if special is None else special
    if isinstance(value, Mapping):
        return {plain_text(str(key)): tidy(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [tidy(entry) for entry in value]
    return plain_text(str(value))


def to_json(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII. Raises ValueError for what JSON has no word for."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def as_column(value: Any) -> str:
    """JSON for a column that databases look into: with characters as they are, since not all of them take an escape
    in a key for the character."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def from_json(text: str) -> Any:
    """What JSON text says; the text itself under "unreadable" where somebody broke it."""
    try:
        return json.loads(text)
    except ValueError:
        return {"unreadable": text}
