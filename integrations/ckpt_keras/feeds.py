"""Data that Keras iterates in Python, as one pass after another, each with a position that can be gone back to.

A pass is gone on with by beginning it again as it began, and either skipping batches, where they have indices
and depend on nothing else that is not restored, or fetching them again and dropping them. Which data becomes a
feed, and how, is `sources.py`'s; what data draws from and remembers is `rng.py`'s and `memory.py`'s.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from ckpt_core import clock
from ckpt_keras.memory import Memory
from ckpt_keras.rng import host_streams

__all__ = ["Feed", "ResumeData"]

_log = logging.getLogger("ckpt_core.keras.data")

ResumeData = Literal["auto", "skip", "replay"]
Position = dict[str, Any]
LONGEST_TAPE = 4_096
"""Entries of some 5 KB each. Only data that draws from where the training loop draws, too, needs any."""
_SECONDS_BETWEEN_REPORTS = 10.0
_LOOKAHEAD = 1_024


class Feed:
    """`open(number, first)` begins pass `number`, from 1, at its so manieth batch: what it draws for the whole
    pass it draws at once. Where the data is not `skippable`, `first` is always 0. `make_up`, if given, is told
    how many passes were made in another process that left their mark on the data.

    A pass may be asked for more batches than are trained on, and from another thread than the one that asks
    for positions: TensorFlow fetches in advance. `data` is what batches come from, and answers for the feed.
    """

    def __init__(
        self,
        open_pass: Callable[[int, int], Iterator[Any]],
        data: Any,
        *,
        name: str,
        skippable: bool,
        resume_data: ResumeData,
        lookahead: bool = False,
        make_up: Callable[[int], None] | None = None,
    ) -> None:
        self.name = name
        self._make_up = make_up
        self._data = data
        self._open = open_pass
        self._skippable = skippable
        self._resume_data: ResumeData = resume_data
        self._lookahead = lookahead
        self.memory = Memory({"data": data})
        self._lock = threading.RLock()
        self._ready: tuple[Iterator[Any], list[Any]] | None = None
        self.passes = 0
        self.fetched = 0
        self._begin: dict[str, Any] = {}
        self._tape: _Tape | None = None
        self._marks: deque[dict[str, Any]] = deque(maxlen=_LOOKAHEAD)
        self._sizes: dict[str, int] = {}
        self._grown: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_data" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._data, name)

    # -- what Keras does with it ------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        """One pass. It begins, and draws, when its first batch is asked for."""
        with self._lock:
            ready, self._ready = self._ready, None
            if ready is None:
                ready = (self._begin_pass(), [])
        iterator, buffered = ready
        yield from buffered
        while True:
            with self._lock:
                try:
                    batch = self._fetch(iterator)
                except StopIteration:
                    return
            yield batch

    # -- positions --------------------------------------------------------------------------------

    def held(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which no batch is fetched."""
        return self._lock

    def position(self, delivered: int) -> Position:
        """Where the present pass stands when so many of its batches have been trained on."""
        with self._lock:
            ahead = self.fetched - delivered
            return {
                "passes": self.passes,
                "delivered": delivered,
                "begin": self._begin,
                "tape": dict(self._tape.entries) if self._tape is not None else {},
                "marks": list(self._marks)[len(self._marks) - ahead :] if ahead > 0 else [],
                "grown": sorted(self._grown),
                "memory": {**self.memory.read(), "orders": self.memory.read_orders()},
            }

    def between(self) -> Position:
        """How things stand when no pass is under way."""
        with self._lock:
            memory = {**self.memory.read(), "orders": self.memory.read_orders()}
            return {"passes": self.passes, "memory": memory}

    def resume_between(self, position: Mapping[str, Any]) -> None:
        """Go to where `between` was taken."""
        self._go_to_pass(position["passes"], position["passes"])
        self._put(position["memory"])

    def resume(self, position: Mapping[str, Any]) -> None:
        """Have the next pass go on where `position` was taken; what was fetched in advance then, is again.

        Leaves the random state of the process as it is.
        """
        now = {name: stream.read() for name, stream in host_streams().items()}
        delivered = position["delivered"]
        method, reason = self._method(position)
        if delivered:
            how = "skipping to" if method == "skip" else "fetching again and dropping"
            _log.info("%s: going to batch %d by %s it (%s)", self.name, delivered, how, reason)
        self._go_to_pass(position["passes"], position["passes"] - 1)
        self._begin = position["begin"]
        _write_streams(self._begin["streams"])
        self._put(self._begin["memory"])
        self._note_sizes()
        self._grown = set(position["grown"])
        first = delivered if method == "skip" else 0
        iterator = self._open(self.passes, first)
        self._tape = _Tape(position["tape"]) if self._must_tape() or position["tape"] else None
        self.fetched = first
        self._replay(iterator, delivered)
        buffered = []
        self._marks.clear()
        for mark in position["marks"]:
            _write_streams(mark["streams"])
            self._put(mark["memory"])
            buffered.append(self._fetch(iterator))
        self._put(position["memory"])
        self._ready = (iterator, buffered)
        _write_streams(now)

    # -- details ----------------------------------------------------------------------------------

    def _begin_pass(self) -> Iterator[Any]:
        self.passes += 1
        self.fetched = 0
        self._marks.clear()
        memory = {**self.memory.read(), "orders": self.memory.read_orders()}
        streams = {name: stream.read() for name, stream in host_streams().items()}
        self._begin = {"streams": streams, "memory": memory}
        self._note_sizes()
        self._grown = set(self.memory.iterators) if self._skippable else set()
        self._tape = _Tape({}) if self._must_tape() else None
        return self._open(self.passes, 0)

    def _go_to_pass(self, number: int, over: int) -> None:
        if self._make_up is not None and over > self.passes:
            self._make_up(over - self.passes)
        self.passes = number

    def _fetch(self, iterator: Iterator[Any]) -> Any:
        mark: dict[str, Any] = {}
        if self._lookahead:
            streams = {name: stream.read() for name, stream in host_streams().items()}
            mark = {"streams": streams, "memory": self.memory.read()}
        if self._tape is not None:
            self._tape.before()
        batch = next(iterator)
        if self._tape is not None:
            self._tape.after(self.fetched)
        self.fetched += 1
        self._marks.append(mark)
        sizes = self.memory.grown()
        grown = {path for path in sizes if sizes[path] != self._sizes.get(path, sizes[path])}
        if grown - self._grown:
            self._grown |= grown
            if self._tape is None:
                self._tape = _Tape({})
        return batch

    def _replay(self, iterator: Iterator[Any], last: int) -> None:
        reported = clock.monotonic()
        for index in range(self.fetched, last):
            if self._tape is not None:
                self._tape.rewind(index)
            try:
                self._fetch(iterator)
            except StopIteration:
                _log.warning(
                    "%s ended after %d batches, before the position of the checkpoint (%d): it is not the data "
                    "that the checkpoint was made with", self.name, index, last,
                )  # fmt: skip
                return
            if clock.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                reported = clock.monotonic()
                _log.info("%s: fetched again %d of %d batches", self.name, index + 1, last)

    def _method(self, position: Mapping[str, Any]) -> tuple[str, str]:
        """How to go to a position, and why so."""
        if not self._skippable:
            return "replay", "it has no indices to skip"
        if self._resume_data != "auto":
            return self._resume_data, f"as resume_data={self._resume_data!r} says"
        if position["grown"]:
            return "replay", f"its batches depend on what was fetched before: {', '.join(position['grown'])}"
        return "skip", "exact: all that its batches depend on besides their index is restored"

    def _must_tape(self) -> bool:
        return not self._skippable or self._resume_data == "replay" or bool(self._grown)

    def _note_sizes(self) -> None:
        self._sizes = self.memory.grown()

    def _put(self, memory: Mapping[str, Any]) -> None:
        absent = self.memory.write(memory)
        if absent:
            _log.warning(
                "%s: not restored, as it is no longer there: %s; the data may differ from an uninterrupted run",
                self.name, ", ".join(absent),
            )  # fmt: skip


class _Tape:
    """Global random states at the moments when a pass drew after somebody else had drawn.

    A pass is advanced between `before` and `after`. `rewind` puts the generators as they were before that
    advance; where it does nothing, they are so already.
    """

    def __init__(self, entries: Mapping[int, Mapping[str, Any]]) -> None:
        self.entries = {index: dict(entry) for index, entry in entries.items()}
        self._full = False
        self._streams = host_streams()
        self._expected = self._read()
        self._before: dict[str, Any] = {}

    def before(self) -> None:
        """The pass is about to be advanced."""
        self._before = self._read()

    def after(self, index: int) -> None:
        """The pass was advanced for the `index`-th time, counted from 0."""
        now, before = self._read(), self._before
        drawn = [name for name in now if now[name] != before[name]]
        entry = {name: before[name] for name in drawn if before[name] != self._expected[name]}
        self._expected.update({name: now[name] for name in drawn})
        if not entry:
            return
        if len(self.entries) < LONGEST_TAPE:
            self.entries[index] = entry
        elif not self._full:
            self._full = True
            _log.warning(
                "the data draws from a global generator at every batch, between the draws of the training; after "
                "%d batches this is no longer recorded, and a resume later in this pass will not be exact. Give "
                "the data a generator of its own",
                LONGEST_TAPE,
            )

    def rewind(self, index: int) -> None:
        """Make the generators as they were before the `index`-th advance."""
        _write_streams(self.entries.get(index, {}))

    def _read(self) -> dict[str, Any]:
        return {name: stream.read() for name, stream in self._streams.items()}


def _write_streams(values: Mapping[str, Any]) -> None:
    streams = host_streams()
    for name, value in values.items():
        if name in streams:
            streams[name].write(value)
