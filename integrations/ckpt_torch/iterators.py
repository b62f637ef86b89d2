"""Makes iterators of a torch DataLoader that can be watched, begun further on, and carried over a restart.

One `IteratorMaker` for each loader. It leaves the loader as it was: what it puts before the loader's own
sampler and collate function lives in the iterators only. Which position to go to is `loader.py`'s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from ckpt_torch.memory import Memory
from ckpt_torch.rng import read_streams, write_streams
from ckpt_torch.tape import Tape, WatchedSampler
from ckpt_torch.workers import Reported, State, WorkerProbe, WorkerStates

__all__ = ["IteratorMaker", "is_plain"]


def is_plain(loader: object) -> bool:
    """Whether it is torch's DataLoader, or a subclass that iterates as that one does."""
    return isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__


class IteratorMaker:
    """The iterators of one plain DataLoader, and what is known of its workers.

    `born` is the random state with which the workers that are there were started; `continued` says that the
    present iterator found them there, which is so from the second epoch on with `persistent_workers`.
    """

    def __init__(self, loader: DataLoader[Any], memory: Memory) -> None:
        self.loader = loader
        self.workers = WorkerStates()
        self.continued = False
        self.born: dict[str, Any] | None = None
        self.tape = Tape()
        self._memory = memory
        self._sampler: WatchedSampler | None = None
        self._owned: Any = None

    @property
    def persistent(self) -> bool:
        return bool(self.loader.num_workers and self.loader.persistent_workers)

    @property
    def foreign(self) -> bool:
        """Whether persistent workers are there that somebody else started, of which nothing is known."""
        there = getattr(self.loader, "_iterator", None)
        return self.persistent and there is not None and there is not self._owned

    def fresh(self) -> Iterator[Any]:
        """An iterator from the beginning, made exactly as the loader itself would make it."""
        self.tape = Tape()
        if self.foreign:
            return iter(self.loader)
        if self.persistent and getattr(self.loader, "_iterator", None) is not None:
            self.drain()
            self.continued = True
            self.workers.begin()
            assert self._sampler is not None
            self._sampler.tape = self.tape
            return iter(self.loader)
        self.continued = False
        self.workers = WorkerStates()
        return self._make(0)

    def resumed(
        self,
        tape: Tape,
        *,
        skip: int,
        states: Mapping[int, State],
        born: Mapping[str, Any] | None,
        begin: Mapping[str, Any],
    ) -> Iterator[Any]:
        """An iterator that begins after `skip` indices, with workers in the given states.

        `begin` (streams and memory) is how things stood when the earlier iterator began. With `born`, that
        one had found its workers there: they are first started as they were then.
        """
        self.tape = tape
        self.workers = WorkerStates(states)
        self.continued = born is not None
        if getattr(self.loader, "_iterator", None) is not None:
            self.loader._iterator = None
        if born is None:
            self._put(begin)
            return self._make(skip, states)
        self._put(born)
        iterator = self._make(skip, states, begin)
        self.born = dict(born)
        return iterator

    def take(self, item: Any, batch: int) -> Any:
        """The batch that an iterator of ours gave as its `batch`-th, without its worker's report."""
        if isinstance(item, Reported):
            self.workers.note(batch, item.report)
            return item.batch
        return item

    def drain(self) -> None:
        """Let persistent workers finish what they were given, and take in their reports.

        The loader would wait for the same batches and drop them when the next epoch begins.
        """
        iterator = getattr(self.loader, "_iterator", None)
        if iterator is None or iterator is not self._owned or self._sampler is None:
            return
        self._sampler.stopped = True
        try:
            for item in iterator:
                self.take(item, -1)
        finally:
            self._sampler.stopped = False

    def _make(
        self, skip: int, states: Mapping[int, State] | None = None, begin: Mapping[str, Any] | None = None
    ) -> Iterator[Any]:
        loader = self.loader
        self.born = {"streams": read_streams(), "memory": self._memory.read()} if self.persistent else None
        key = "sampler" if loader.batch_sampler is None else "batch_sampler"
        sampler = WatchedSampler(getattr(loader, key), self.tape)
        sampler.skip = skip
        sampler.draws_once |= isinstance(loader.dataset, IterableDataset)  # nothing is sampled there
        replaced: dict[str, Any] = {key: sampler}
        if begin is not None:
            sampler.before_walk = lambda: self._put(begin)
        if loader.num_workers:
            probe = WorkerProbe(loader.collate_fn, loader.worker_init_fn, states)
            replaced |= {"collate_fn": probe.collate, "worker_init_fn": probe.init}
        with _replaced(loader, replaced):
            iterator = iter(loader)
        if sampler.walk is not None:  # with workers it has come so far already
            sampler.walk.skip()
        self._sampler = sampler
        self._owned = iterator if self.persistent else None
        return iterator

    def _put(self, moment: Mapping[str, Any]) -> None:
        write_streams(moment["streams"])
        memory = moment["memory"]
        self._memory.write(memory, numbers=frozenset(memory["numbers"]))


@contextlib.contextmanager
def _replaced(loader: DataLoader[Any], attributes: Mapping[str, Any]) -> Iterator[None]:
    # Straight into the instance: DataLoader refuses to have its sampler set once it is made.
    held = {name: vars(loader)[name] for name in attributes}
    vars(loader).update(attributes)
    try:
        yield
    finally:
        vars(loader).update(held)
