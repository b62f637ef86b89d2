"""How a loop was left is told right in every way of leaving it: an end must not be taken for a failure, nor v.v."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ckpt_torch.leaving import advanced_by, left_by_choice

Wrap = Callable[[Any], Any]


class Turns:
    """Iterates three times, and notes how it was left."""

    def __init__(self) -> None:
        self.left: list[bool | None] = []

    def __iter__(self) -> Iterator[int]:
        last: frozenset[int] = frozenset()
        try:
            for turn in range(3):
                last = advanced_by(sys._getframe().f_back)
                yield turn
        except GeneratorExit:
            self.left.append(left_by_choice(sys._getframe().f_back, last))
            raise


def by_break(turns: Any) -> None:
    for _ in turns():
        break


def by_break_out_of_two(turns: Any) -> None:
    for _ in turns():
        for each in range(3):
            if each:
                break
        break
    str(turns)


def by_break_in_blocks(turns: Any) -> None:
    for _ in turns():
        try:
            with contextlib.nullcontext():
                if turns:
                    break
        finally:
            str(turns)


def by_break_after_an_error(turns: Any) -> None:
    for _ in turns():
        try:
            int("no number")
        except ValueError:
            break


def by_return(turns: Any) -> Any:
    for _ in turns():
        for each in range(3):
            return each
    return None


def by_return_of_a_call(turns: Any) -> Any:
    for _ in turns():
        return str(turns)
    return None


def by_error(turns: Any) -> None:
    for _ in turns():
        for _ in range(3):
            raise RuntimeError


def by_error_of_a_call(turns: Any) -> None:
    for _ in turns():
        int("no number")


def by_error_in_blocks(turns: Any) -> None:
    for _ in turns():
        try:
            with contextlib.nullcontext():
                turns[0]
        finally:
            str(turns)


def by_error_after_an_error(turns: Any) -> None:
    for _ in turns():
        try:
            int("no number")
        except ValueError:
            raise RuntimeError from None


def by_error_again(turns: Any) -> None:
    for _ in turns():
        try:
            int("no number")
        except ValueError:
            raise


def by_error_that_is_caught(turns: Any) -> None:
    with contextlib.suppress(RuntimeError):
        for _ in turns():
            raise RuntimeError


def by_exit(turns: Any) -> None:
    for _ in turns():
        sys.exit(0)


def in_a_generator(turns: Any) -> Iterator[int]:
    yield from turns


def loop_in_a_generator(turns: Any) -> Iterator[int]:
    for turn in turns:
        try:
            yield turn
        finally:
            str(turns)


class Bar:
    """A progress bar, which holds what it iterates over."""

    def __init__(self, turns: Any) -> None:
        self.turns = turns
        self.shown = 0

    def __iter__(self) -> Iterator[int]:
        for turn in self.turns:
            yield turn
            self.shown += 1


WRAPS: list[Wrap] = [lambda turns: turns, enumerate, in_a_generator, loop_in_a_generator, Bar]
CHOICES = [
    by_break, by_break_out_of_two, by_break_in_blocks, by_break_after_an_error, by_return, by_return_of_a_call,
]  # fmt: skip
ERRORS = [
    by_error, by_error_of_a_call, by_error_in_blocks, by_error_after_an_error, by_error_again,
    by_error_that_is_caught, by_exit,
]  # fmt: skip


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("leave", CHOICES + ERRORS)
def test_how_a_loop_was_left(leave: Callable[[Any], Any], wrap: Wrap) -> None:
    turns = Turns()
    with contextlib.suppress(Exception, SystemExit):
        leave(lambda: wrap(turns))
    assert turns.left == [leave in CHOICES]


def test_a_loop_over_a_generator_that_somebody_holds_cannot_be_told() -> None:
    turns = Turns()
    held = [iter(turns)]
    by_break(lambda: held[0])
    assert turns.left == []

    def drop() -> None:
        held.clear()

    drop()
    assert turns.left == [None]


def test_a_loop_to_its_end_was_not_left() -> None:
    turns = Turns()
    assert list(turns) == [0, 1, 2]
    assert turns.left == []
