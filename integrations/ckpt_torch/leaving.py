"""How a `for` statement left its iterator: by `break` or `return`, or because of an exception.

Python tells an iterator neither: in both cases it drops it, at once. But it stands at another instruction then.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Collection, Iterator
from types import FrameType

__all__ = ["LoopLeftError", "advanced_by", "left_by_choice"]

_DROPS = {"POP_TOP", "POP_ITER"}
"""What `break` and `return` drop the iterator of a loop with. None of these can raise anything."""


class LoopLeftError(RuntimeError):
    """Stands for what ended a training loop where the loop cannot be told: never raised, only reported."""


def advanced_by(frame: FrameType | None) -> frozenset[int]:
    """Who advances a generator, to be remembered for `left_by_choice`: `frame` is its own `f_back`."""
    return frozenset(id(each) for each in _callers(frame))


def left_by_choice(frame: FrameType | None, advanced: Collection[int]) -> bool | None:
    """Whether the loop over a generator was left by `break` or `return`, and not by an exception.

    To be asked while the generator is being closed: `frame` is its own `f_back` then. `advanced`: who advanced it
    last. None where it cannot be told: somebody else held the generator, too, and dropped it some time later, or
    this is not CPython.
    """
    for each in _callers(frame):
        if id(each) not in advanced:
            return None
        code, at = each.f_code.co_code, each.f_lasti
        if 0 <= at < len(code) and dis.opname[code[at]] in _DROPS:
            return True
    return False if frame is not None else None


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    """The frame of the loop, after those of the generators in between, as of a progress bar."""
    while frame is not None:
        yield frame
        if not frame.f_code.co_flags & inspect.CO_GENERATOR:
            return
        frame = frame.f_back
