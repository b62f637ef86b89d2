"""Data that knows its position and can go back to it, to the same batches and the same randomness.

An iterator that keeps its own position (grain's) is asked for it; any other is made anew as it was made
then, and what it has delivered is fetched again and dropped. What it draws from is `streams.py`'s and
`memory.py`'s to find; the random state of the training loop itself is restored by who resumes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Self

from ckpt_core import UsageError, clock
from ckpt_core.streams import Stream
from ckpt_jax.memory import Memory
from ckpt_jax.streams import global_streams

__all__ = ["Feed"]

_log = logging.getLogger("ckpt_core.jax.data")
_SECONDS_BETWEEN_REPORTS = 10.0
LONGEST_TAPE = 4_096
"""Entries of some 3 KB each. Only data that draws from where the training loop draws, too, needs any."""


class Feed:
    """`data` as an iterator with a position. Each `iter` begins it anew, unless it is an iterator itself."""

    def __init__(self, data: Any, name: str = "data") -> None:
        self.data = data
        self.name = name
        self.delivered = 0
        self._memory = Memory(data)
        self._iterator: Iterator[Any] | None = None
        self._begin: dict[str, Any] = {}
        self._tape = _Tape({}, {})
        self._pending: Mapping[str, Any] | None = None
        self._ready = False
        self.closed = False
        """Whether the present pass is over, however far it came: for who iterates to say."""

    # -- iterating --------------------------------------------------------------------------------

    def __iter__(self) -> Self:
        self.seek()
        if not self._ready:
            position, self._pending = self._pending, None
            if position is not None and position["kind"] == "own":
                _write_own(self.data, position["own"])
            if self._iterator is None or self._iterator is not self.data:
                self._start()
        self.closed = False
        return self

    def __next__(self) -> Any:
        if self._iterator is None or self._pending is not None:
            iter(self)
        self._ready = False
        assert self._iterator is not None
        if _is_own(self._iterator):
            batch = next(self._iterator)
        else:
            batch = self._tape.advance(self._iterator, self.delivered)
        self.delivered += 1
        return batch

    def seek(self) -> None:
        """Go to the position that was resumed, if it lies in the midst of a pass: `iter` goes on from there."""
        position = self._pending
        if position is not None and position["started"]:
            self._pending = None
            self._resume(position)
            self._ready, self.closed = True, False

    def _start(self) -> None:
        self._begin = self._moment() | {"orders": self._memory.read_orders()}
        self._iterator = iter(self.data)
        self._tape = _Tape(self._streams(), {})
        self.delivered = 0
        self._ready = True

    # -- the position -----------------------------------------------------------------------------

    def position(self, *, between: bool = False) -> dict[str, Any]:
        """Where the next batch would be fetched, as a state. Cheap enough to be asked before each batch.

        `between`: the present pass is over, however far it came.
        """
        if self._pending is not None:
            return dict(self._pending)
        over = between or self.closed
        started = self._iterator is not None and (not over or self._iterator is self.data)
        owner = self._owner()
        if owner is not None:
            own = _read_own(owner) if started or owner is self.data else None
            return {"kind": "own", "started": started, "own": own, "delivered": self.delivered}
        position = {"kind": "replay", "started": started, **self._moment(own=True)}
        if not started:
            return position | {"orders": self._memory.read_orders()}
        return position | {"delivered": self.delivered, "begin": self._begin, "tape": self._tape.entries}

    def resume(self, position: Mapping[str, Any]) -> None:
        """Have the next iteration begin where `position` was taken.

        The global random states are the caller's to restore: after the first `iter`, before the first
        batch is asked for.
        """
        self._pending = position
        if position["kind"] == "replay" and not position["started"]:
            self._write(position)

    def _resume(self, position: Mapping[str, Any]) -> None:
        if position["kind"] == "own":
            if _is_own(self.data):
                _write_own(self.data, position["own"])
            self._iterator = iter(self.data)
            if not _is_own(self.data):
                if not _is_own(self._iterator):
                    raise UsageError(_NOT_OWN.format(self.name, type(self.data).__name__), kind="data")
                _write_own(self._iterator, position["own"])
            self.delivered = position["delivered"]
            return
        self._begin = position["begin"]
        self._write(self._begin)
        self._iterator = iter(self.data)
        self._tape = _Tape(self._streams(), position["tape"])
        self._replay(position["delivered"])
        self._write(position)

    def _replay(self, count: int) -> None:
        assert self._iterator is not None
        _log.info("%s: going to batch %d by fetching those before it again", self.name, count)
        reported = clock.monotonic()
        self.delivered = 0
        for number in range(count):
            self._tape.rewind(number)
            try:
                self._tape.advance(self._iterator, number)
            except StopIteration:
                _log.warning(
                    "%s ended after %d batches, before the position of the checkpoint (%d): it is not the data "
                    "that the checkpoint was made with", self.name, number, count,
                )  # fmt: skip
                return
            self.delivered += 1
            if clock.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                reported = clock.monotonic()
                _log.info("%s: fetched again %d of %d batches", self.name, number + 1, count)

    # -- details ----------------------------------------------------------------------------------

    def _owner(self) -> Any:
        """What keeps the position itself, as far as is known yet: the iterator, or the data."""
        if self._iterator is not None and _is_own(self._iterator):
            return self._iterator
        return self.data if _is_own(self.data) else None

    def _streams(self) -> dict[str, Stream]:
        return global_streams() | self._memory.streams

    def _moment(self, *, own: bool = False) -> dict[str, Any]:
        """The random states, of its own generators or of all, and what else is remembered."""
        streams = self._memory.streams if own else self._streams()
        return {
            "streams": {name: stream.read() for name, stream in streams.items()},
            "values": self._memory.read(),
        }

    def _write(self, moment: Mapping[str, Any]) -> None:
        streams = self._streams()
        absent = [name for name in moment["streams"] if name not in streams]
        for name in moment["streams"].keys() & streams.keys():
            streams[name].write(moment["streams"][name])
        absent += self._memory.write({**moment["values"], **moment.get("orders", {})})
        if absent:
            _log.warning(
                "%s: not restored, as it is no longer there: %s; the data may differ from an uninterrupted run",
                self.name, ", ".join(absent),
            )  # fmt: skip


class _Tape:
    """Random states at the moments when an iterator drew after somebody else had drawn from the same stream.

    With these, and only with these, fetching the same batches again gives the same batches.
    """

    def __init__(self, streams: Mapping[str, Stream], entries: Mapping[int, Mapping[str, Any]]) -> None:
        self.entries: dict[int, dict[str, Any]] = {number: dict(entry) for number, entry in entries.items()}
        self._streams = streams
        self._left: dict[str, Any] | None = None

    def advance(self, iterator: Iterator[Any], number: int) -> Any:
        before = self._read()
        item = next(iterator)
        after = self._read()
        drawn = [name for name in after if after[name] != before[name]]
        if number and self._left is not None and number not in self.entries:
            entry = {name: before[name] for name in drawn if before[name] != self._left[name]}
            if entry and len(self.entries) < LONGEST_TAPE:
                self.entries[number] = entry
            elif entry and len(self.entries) == LONGEST_TAPE:
                self.entries[number] = entry
                _log.warning(
                    "the data draws from the same generator as the training loop, batch by batch; after %d "
                    "batches this is no longer recorded, and a resume later in this pass will not be exact: "
                    "give the data a generator of its own", LONGEST_TAPE,
                )  # fmt: skip
        self._left = after if self._left is None else self._left | {name: after[name] for name in drawn}
        return item

    def rewind(self, number: int) -> None:
        """Make the streams as they were before the `number`-th advance."""
        for name, state in self.entries.get(number, {}).items():
            if name in self._streams:
                self._streams[name].write(state)

    def _read(self) -> dict[str, Any]:
        return {name: stream.read() for name, stream in self._streams.items()}


_NOT_OWN = (
    "the position of {} in the checkpoint is one that the data kept itself, and {} does not: give the data that "
    "the checkpoint was made with"
)
_PAIRS = (("get_state", "set_state"), ("state_dict", "load_state_dict"))


def _pair(owner: object) -> tuple[str, str] | None:
    for get, put in _PAIRS:
        if callable(getattr(owner, get, None)) and callable(getattr(owner, put, None)):
            return get, put
    return None


def _is_own(owner: object) -> bool:
    """Whether it keeps its own position: grain's iterators do, and torchdata's loaders."""
    return _pair(owner) is not None


def _read_own(owner: Any) -> Any:
    pair = _pair(owner)
    assert pair is not None
    return getattr(owner, pair[0])()


def _write_own(owner: Any, position: Any) -> None:
    pair = _pair(owner)
    if pair is not None and position is not None:
        getattr(owner, pair[1])(position)
