"""A data loader that knows its position and can go back to it, to the same batches and the same randomness.

`TrackedLoader` iterates as the loader does and changes nothing about what it draws. How iterators are made
is `iterators.py`'s work; the random state of the training loop itself is restored by who resumes.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from torch.utils.data import IterableDataset

from ckpt_core import clock
from ckpt_core.errors import UsageError
from ckpt_torch.description import describe, of_samples, roots, warn_of_differences
from ckpt_torch.iterators import IteratorMaker, is_plain
from ckpt_torch.memory import Memory
from ckpt_torch.rng import read_streams, write_streams
from ckpt_torch.tape import Tape

__all__ = ["ResumeData", "TrackedLoader"]

_log = logging.getLogger("ckpt_core.torch.data")

ResumeData = Literal["auto", "skip", "replay"]
Position = dict[str, Any]
_SECONDS_BETWEEN_REPORTS = 10.0
_SAYS = {
    "own": "keeps its own position (state_dict)",
    "plain": "does not keep its position itself",
    "None": "?",
}


class TrackedLoader:
    """`loader` with a position that can be saved and resumed.

    `before_fetch` is called each time before a batch is fetched: between two iterations of the training
    loop. `lookahead` is how many batches the consumer fetches in advance. Loaders with `state_dict` and
    `load_state_dict` keep their own position.
    """

    def __init__(
        self,
        loader: Any,
        *,
        name: str = "loader",
        resume_data: ResumeData = "auto",
        before_fetch: Callable[[], None] | None = None,
        lookahead: int = 0,
    ) -> None:
        if resume_data not in ("auto", "skip", "replay"):
            raise UsageError(f'resume_data is {resume_data!r}; give "auto", "skip" or "replay"')
        self.loader = loader
        self.name = name
        self.resume_data = resume_data
        self.before_fetch = before_fetch
        self.lookahead = lookahead
        self.stateful = all(
            callable(getattr(loader, each, None)) for each in ("state_dict", "load_state_dict")
        )
        self.delivered = 0
        self.started = False
        self.passes = 0
        self._memory = Memory(roots(loader))
        self._maker = IteratorMaker(loader, self._memory) if is_plain(loader) else None
        self._baseline: dict[str, Any] | None = None
        self._changed: set[str] = set()
        self._sizes: dict[str, int] = {}
        self._first_sizes: dict[str, int] | None = None
        self._carried: set[str] = set()
        self._grown: set[str] = set()
        self._begin: dict[str, Any] = {}
        self._tape: Tape | None = None
        self._marks: deque[dict[str, Any]] = deque(maxlen=lookahead or None)
        self._pending: Position | None = None
        self._ready: Iterator[Any] | None = None
        self._over = self._resting = True

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        ready, self._ready = self._ready, None
        return ready if ready is not None else self._begin_iteration()

    @property
    def upcoming(self) -> int:
        """The number in its pass of the batch that comes next; 0 between two passes."""
        if self._pending is not None:
            return int(self._pending["delivered"]) if self._pending["started"] else 0
        return 0 if self._over else self.delivered

    def rest(self) -> None:
        """The pass that was begun is behind: the next iteration begins another, however far this one came."""
        self._over = self._resting = True

    def go(self) -> None:
        """Go to the position that is to be resumed now, and not when the iteration is asked for.

        That takes draws from the global generators: where there are several loaders, all of them must be in
        place before those are restored.
        """
        if self._pending is not None and self._pending["started"]:
            self._ready = self._begin_iteration()

    def _begin_iteration(self) -> Iterator[Any]:
        position, self._pending = self._pending, None
        buffered: list[Any] = []
        if self.stateful:
            if position is not None:
                self._load_own(position)
            iterator = iter(self.loader)
            self.delivered = position["delivered"] if position is not None else 0
        elif position is None or not position["started"]:
            iterator = self._fresh(position)
        else:
            iterator = self._resumed(position, buffered)
        self.started = True
        self._over = self._resting = False
        return _Batches(self, iterator, buffered)

    def position(self, *, ahead: int = 0, between: bool = False) -> Position:
        """Where the next batch would be fetched, as a plain value.

        `ahead` batches have been fetched that the training loop has not been given yet. With `between` the
        present epoch is over, however far it came, as after `rest`.
        """
        if self._pending is not None:
            return self._pending
        between |= self._resting
        if self.stateful:
            started = self.started and not between
            return {
                "kind": "own",
                "own": self.loader.state_dict(),
                "started": started,
                "delivered": self.delivered,
                "generators": self._memory.read()["generators"],
            }
        self._note_numbers()
        started = self.started and not between
        position: Position = {
            "kind": "plain",
            "started": started,
            "loader": describe(self.loader),
            "memory": self._kept(self._memory.read()),
            "changed": sorted(self._changed),
            "carried": sorted(self._carried | self._grown if between else self._carried),
        }
        if self._maker is not None and self._maker.persistent and self._maker.born is not None:
            if between:
                self._maker.drain()
            position["born"] = self._kept_moment(self._maker.born)
            position["workers"] = dict(self._maker.workers.after)
        if not started:
            return position
        delivered = self.delivered - ahead
        position |= {
            "delivered": delivered,
            "passes": self.passes,
            "begin": self._kept_moment(self._begin),
            "tape": dict(self._tape.entries) if self._tape is not None else {},
            "marks": [self._kept_moment(mark) for mark in list(self._marks)[len(self._marks) - ahead :]],
            "grown": sorted(self._grown),
        }
        if self._maker is not None:
            workers = self._maker.workers
            position |= {
                "sampler_tape": dict(self._maker.tape.entries),
                "continued": self._maker.continued,
                "grown": sorted(self._grown | workers.grown),
                "carried": sorted(self._carried | workers.carried),
                "workers": workers.at(delivered - delivered % (self.loader.num_workers or 1)),
                "workers_begin": self._workers_begin,
            }
        return position

    def resume(self, position: Mapping[str, Any]) -> None:
        """Have the next iteration begin where `position` was taken.

        The global random states are the caller's to restore: after `iter`, before the first batch is asked
        for. Raises UsageError for a position of another kind of loader.
        """
        kind = "own" if self.stateful else "plain"
        if position.get("kind") != kind:
            raise UsageError(
                f"the checkpoint's data position is of a loader that {_SAYS[str(position.get('kind'))]}, and "
                f"{self.name} {_SAYS[kind]}: use the same kind of loader, or leave it out to begin the epoch anew",
                kind="loader",
            )
        self._pending = dict(position)
        if kind == "own":
            return
        warn_of_differences(self.name, position["loader"], describe(self.loader))
        self._baseline = self._memory.read_numbers()
        self._changed.update(position["changed"])
        self._carried.update(position["carried"])
        if self._carried:
            _log.warning(
                "%s: %s kept what earlier epochs put there, which is not in the checkpoint. If that is but a "
                "cache, all is well; if samples depend on it, the data will differ from an uninterrupted run",
                self.name, ", ".join(sorted(self._carried)),
            )  # fmt: skip
        absent = self._memory.write(position["memory"], numbers=frozenset(self._changed))
        if absent:
            _log.warning(
                "%s: not restored, as it is no longer there: %s; the data may differ from an uninterrupted run",
                self.name, ", ".join(absent),
            )  # fmt: skip

    def fetch(self, iterator: Iterator[Any]) -> Any:
        """The next batch of an iterator that this loader made. For that iterator."""
        if self.lookahead:
            self._marks.append({"streams": read_streams(), "memory": self._memory.read()})
        if self._tape is not None:
            self._tape.before()
        batch = next(iterator)
        if self._tape is not None:
            self._tape.after(self.delivered)
        if self._maker is not None:
            batch = self._maker.take(batch, self.delivered)
        self.delivered += 1
        if not self.stateful:
            self._watch()
        return batch

    def _watch(self) -> None:
        """Look for what the dataset remembers and we cannot put back; from then on, tape what it draws."""
        if self._maker is not None and self.loader.num_workers:
            return
        sizes = self._memory.sizes()
        grown = of_samples(path for path in sizes if sizes[path] != self._sizes.get(path, sizes[path]))
        if grown - self._grown and self._tape is None:
            self._tape = Tape()
            self._tape.begin()
        self._grown |= grown

    def _load_own(self, position: Position) -> None:
        self.loader.load_state_dict(position["own"])
        if not position["started"]:
            # torchdata's loader first goes to the end of the epoch that is over. It draws for that, and leaves
            # the generator of its sampler as it was before that epoch.
            streams = read_streams()
            iter(self.loader)
            write_streams(streams)
            self._memory.write({"generators": position["generators"]})

    def _fresh(self, position: Position | None) -> Iterator[Any]:
        self._note_numbers()
        self._begin = {"streams": read_streams(), "memory": self._memory.read()}
        self._note_sizes()
        self._grown = of_samples(self._memory.iterators)
        self.delivered = 0
        self._workers_begin: dict[int, Any] = {}
        self._tape = Tape() if self._must_replay() else None
        iterator: Iterator[Any]
        if self._maker is None:
            iterator = iter(self.loader)
        elif position is not None and position.get("born"):
            self._workers_begin = position["workers"]
            iterator = self._maker.resumed(
                Tape(), skip=0, states=position["workers"], born=position["born"], begin=self._begin
            )
        else:
            if self._maker.foreign:
                _log.warning(
                    "%s: its persistent workers were started before the checkpointer saw the loader; what they "
                    "draw cannot be restored. Do not iterate over it beforehand",
                    self.name,
                )
            iterator = self._maker.fresh()
            self._workers_begin = dict(self._maker.workers.after)
        if self._tape is not None:
            self._tape.begin()
        return iterator

    def _resumed(self, position: Position, buffered: list[Any]) -> Iterator[Any]:
        method, reason = self._method(position)
        delivered = position["delivered"]
        self._begin, self.passes = position["begin"], position["passes"]
        self._note_sizes()
        self._grown = set(position["grown"])
        self._workers_begin = position.get("workers_begin", {})
        aligned = delivered - delivered % (getattr(self.loader, "num_workers", 0) or 1)
        first = aligned if method == "skip" else 0
        if delivered:
            how = "skipping to" if method == "skip" else "fetching again and dropping"
            _log.info("%s: going to batch %d by %s it (%s)", self.name, delivered, how, reason)
        iterator: Iterator[Any]
        if self._maker is None:
            write_streams(self._begin["streams"])
            self._memory.write(self._begin["memory"], numbers=frozenset(self._changed))
            iterator = iter(self.loader)
        else:
            iterator = self._maker.resumed(
                Tape(position["sampler_tape"]),
                skip=first,
                states=position["workers"] if method == "skip" else self._workers_begin,
                born=position["born"] if position["continued"] else None,
                begin=self._begin,
            )
        tape = Tape(position["tape"])
        self._tape = tape if tape.entries or self._must_replay() else None
        self._replay(iterator, first, delivered, tape)
        for mark in position["marks"]:
            write_streams(mark["streams"])
            self._memory.write(mark["memory"], numbers=frozenset(self._changed))
            buffered.append(self.fetch(iterator))
        self._memory.write(position["memory"], numbers=frozenset(self._changed))
        return iterator

    def _replay(self, iterator: Iterator[Any], first: int, last: int, tape: Tape) -> None:
        self.delivered = first
        reported = clock.monotonic()
        for index in range(first, last):
            tape.rewind(index)
            try:
                self.fetch(iterator)
            except StopIteration:
                _log.warning(
                    "%s ended after %d batches, before the position of the checkpoint (%d): it is not the "
                    "data that the checkpoint was made with", self.name, index, last,
                )  # fmt: skip
                return
            if clock.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                reported = clock.monotonic()
                _log.info("%s: fetched again %d of %d batches", self.name, index + 1, last)

    def _method(self, position: Position) -> tuple[str, str]:
        """How to go to a position, and why so."""
        skippable = self._maker is not None and not isinstance(self.loader.dataset, IterableDataset)
        if not skippable:
            return "replay", "it has no indices to skip"
        if self.resume_data != "auto":
            return self.resume_data, f"as resume_data={self.resume_data!r} says"
        if position["grown"]:
            return "replay", f"its samples depend on what was fetched before: {', '.join(position['grown'])}"
        return "skip", "exact: all that its samples depend on besides their index is restored"

    def _must_replay(self) -> bool:
        if self._maker is None:
            return True
        return isinstance(self.loader.dataset, IterableDataset) and not self.loader.num_workers

    def _note_numbers(self) -> None:
        numbers = self._memory.read_numbers()
        if self._baseline is None:
            self._baseline = numbers
        self._changed.update(
            path for path in numbers if numbers[path] != self._baseline.get(path, numbers[path])
        )

    def _note_sizes(self) -> None:
        """Containers that an epoch finds longer than the first one did carry something from epoch to epoch."""
        self._sizes = sizes = self._memory.sizes()
        if self._first_sizes is None:
            self._first_sizes = sizes
        first = self._first_sizes
        self._carried |= of_samples(path for path in sizes if sizes[path] != first.get(path, sizes[path]))

    def _kept(self, memory: Mapping[str, Any]) -> dict[str, Any]:
        numbers = {path: value for path, value in memory["numbers"].items() if path in self._changed}
        return {"generators": memory["generators"], "numbers": numbers}

    def _kept_moment(self, moment: Mapping[str, Any]) -> dict[str, Any]:
        return {"streams": moment["streams"], "memory": self._kept(moment["memory"])}


class _Batches:
    """One iteration. It also answers after its end, as an iterator that is asked again must."""

    def __init__(self, tracked: TrackedLoader, iterator: Iterator[Any], buffered: list[Any]) -> None:
        self._tracked = tracked
        self._iterator = iterator
        self._buffered = buffered
        self._ended = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._buffered:
            return self._buffered.pop(0)
        if self._tracked.before_fetch is not None:
            self._tracked.before_fetch()
        try:
            if not self._ended:
                return self._tracked.fetch(self._iterator)
        except StopIteration:
            self._ended = self._tracked._over = True
            self._tracked.passes += 1
        raise StopIteration
