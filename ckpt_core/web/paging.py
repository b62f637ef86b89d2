"""Long lists, a page at a time: a cursor names the last one that was seen, so that none is shown twice or passed over
while others come and go."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

from fastapi import Query

from ckpt_core.errors import UsageError

__all__ = ["Cursor", "Limit", "page"]

T = TypeVar("T")
Cursor = Annotated[str | None, Query(max_length=2000, description="`next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="The most that a page has.")]


def page(
    items: Iterable[T], position: Callable[[T], list[Any]], cursor: str | None, limit: int
) -> tuple[list[T], str | None]:
    """The items after `cursor` and the cursor of the next page, or None. They come in the order of `position`, which
    is of texts and whole numbers. Raises UsageError."""
    after = None if cursor is None else _decoded(cursor)
    found: list[T] = []
    try:
        for item in items:
            if after is not None and position(item) <= after:
                continue
            if len(found) == limit:
                return found, _encoded(position(found[-1]))
            found.append(item)
    except TypeError as error:  # a cursor of another list
        raise _no_cursor() from error
    return found, None


def _encoded(position: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def _decoded(cursor: str) -> list[Any]:
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error, RecursionError) as error:
        raise _no_cursor() from error
    if not isinstance(found, list):
        raise _no_cursor()
    return found


def _no_cursor() -> UsageError:
    return UsageError("this is no cursor of this list: begin without one", kind="cursor")
