"""Retention by size: as many of the newest as fit into so many bytes, and the words for sizes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ckpt_core.errors import UsageError
from ckpt_core.model import Checkpoint
from ckpt_core.policies.arguments import check_count
from ckpt_core.policies.retention import RetentionContext, oldest_first

__all__ = ["KeepWithinBytes", "parse_bytes"]

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgtp]?)(i?)b)?\s*", re.IGNORECASE | re.ASCII)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


@dataclass(frozen=True, slots=True)
class KeepWithinBytes:
    """Keeps as many of the newest as fit into `limit`: bytes, or text as `"50 GB"` or `"50 GiB"`.

    The newest is always kept. What the newest k take up is estimated as the newest one's `logical_bytes`
    plus, for each older one, the `written_bytes` of its next newer neighbour. Why: checkpoints of a chain
    share the chunks that did not change between them. What an older one holds that its newer neighbour
    does not is what that neighbour replaced; and what it replaced, it wrote anew, about as many bytes. So
    the sum follows the bytes of the union of all chunks: equal to it while the state keeps its size and
    every save finds its unchanged chunks in the checkpoint before it.

    It is an estimate: too low where checkpoints in between were deleted, whose changes the neighbour's
    `written_bytes` do not hold, or where the state has shrunk; too high where it has grown. Checkpoints
    that other policies or pins keep do not count towards the limit. The plan of a prune tells exact bytes.
    """

    limit: int | str

    def __post_init__(self) -> None:
        check_count("KeepWithinBytes.limit", parse_bytes(self.limit))

    def keep(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> Mapping[str, str]:
        limit = parse_bytes(self.limit)
        reason = self.describe(context)
        kept: dict[str, str] = {}
        cost = 0
        newer: Checkpoint | None = None
        for checkpoint in reversed(oldest_first(checkpoints)):
            cost += checkpoint.logical_bytes if newer is None else newer.written_bytes
            if newer is not None and cost > limit:
                break
            kept[checkpoint.id] = reason
            newer = checkpoint
        return kept

    def lasting(self, checkpoints: Sequence[Checkpoint], context: RetentionContext) -> Collection[str]:
        return ()

    def describe(self, context: RetentionContext) -> str:
        return f"within {self.limit}" if isinstance(self.limit, str) else f"within {self.limit} bytes"


def parse_bytes(size: int | str) -> int:
    """The number of bytes in a number or text: `50 GB` is 50 * 1000**3, `50 GiB` is 50 * 1024**3.

    Case and spaces do not matter; a number without a unit is bytes. Raises UsageError for anything else.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None or (match[3] and not match[2]):
        raise UsageError(
            f'{size!r} is not a size; give bytes, or a number and a unit, as "50 GB" or "50 GiB"', kind="size"
        )
    number, prefix, binary = match.groups()
    power = _POWERS[(prefix or "").lower()]
    unit = (1024 if binary else 1000) ** power
    return int(float(number) * unit) if "." in number else int(number) * unit
