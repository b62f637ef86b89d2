"""The index sampler of a DataLoader, walked under observation: what it drew from whom, skipped, stopped.

A sampler that draws lazily from a global generator, between the draws of the training loop, can be
walked again only if each of its draws finds that generator as it was. The tape holds those moments.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from ckpt_torch.rng import read_streams, write_streams

__all__ = ["Tape", "WatchedSampler", "draws_once"]

_log = logging.getLogger("ckpt_core.torch.data")

_DRAW_ONCE = (
    SequentialSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    DistributedSampler,
)

LONGEST = 4_096
"""Entries a tape may hold, of some 5 KB each. Only odd loaders need more than one."""


class Tape:
    """Global random states at the moments when an iterator drew after somebody else had drawn.

    An iterator is advanced between `before` and `after`. `rewind` puts the generators as they were before
    that advance; where it does nothing, they are so already.
    """

    def __init__(self, entries: Mapping[int, Mapping[str, Any]] | None = None) -> None:
        self.entries: dict[int, dict[str, Any]] = {index: dict(e) for index, e in (entries or {}).items()}
        self.full = False
        self._expected: dict[str, Any] | None = None
        self._before: dict[str, Any] = {}

    def begin(self) -> None:
        """The iterator was made this instant; whoever draws from now on before it does is somebody else."""
        self._expected = read_streams()

    def before(self) -> None:
        """The iterator is about to be advanced."""
        self._before = read_streams()

    def after(self, index: int) -> None:
        """The iterator was advanced for the `index`-th time, counted from 0."""
        now, before = read_streams(), self._before
        if self._expected is None:
            self._expected = before
        drawn = [name for name in now if now[name] != before[name]]
        entry = {name: before[name] for name in drawn if before[name] != self._expected[name]}
        self._expected.update({name: now[name] for name in drawn})
        if not entry:
            return
        if len(self.entries) < LONGEST:
            self.entries[index] = entry
        elif not self.full:
            self.full = True
            _log.warning(
                "the sampler or the dataset draws from a global generator at every batch, between the draws "
                "of the training loop; after %d batches this is no longer recorded, and a resume later in "
                "this epoch will not be exact. Give the loader a generator= of its own",
                LONGEST,
            )

    def rewind(self, index: int) -> None:
        """Make the generators as they were before the `index`-th advance."""
        if index in self.entries:
            write_streams(self.entries[index])


class WatchedSampler:
    """Stands before a loader's own sampler while an iterator is made, and as long as that iterator lives.

    `skip` indices are drawn and dropped at the start of the next walk. A loader with workers begins two
    walks when it is made and goes on with the second: `before_walk`, if given, is called between them.
    """

    def __init__(self, sampler: Iterable[Any], tape: Tape) -> None:
        self.sampler = sampler
        self.tape = tape
        self.draws_once = draws_once(sampler)
        self.skip = 0
        self.before_walk: Callable[[], None] | None = None
        self.stopped = False
        self.walk: _Walk | None = None

    def __iter__(self) -> Iterator[Any]:
        if self.before_walk is not None and self.walk is not None:
            self.before_walk()
            self.before_walk = None
        inner = iter(self.sampler)
        self.tape.begin()
        self.walk = _Walk(self, inner)
        return self.walk

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]


class _Walk:
    def __init__(self, owner: WatchedSampler, inner: Iterator[Any]) -> None:
        self._owner = owner
        self._inner = inner
        self._index = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._owner.stopped:
            raise StopIteration
        self.skip()
        return self._advance()

    def skip(self) -> None:
        """Draw and drop the indices that are to be skipped, now."""
        while self._owner.skip:
            self._owner.skip -= 1
            self._advance()

    def _advance(self) -> Any:
        index, tape = self._index, self._owner.tape
        self._index += 1
        if index and self._owner.draws_once:
            return next(self._inner)
        tape.rewind(index)
        tape.before()
        item = next(self._inner)
        tape.after(index)
        return item


def draws_once(sampler: object) -> bool:
    """Whether it draws from a global generator only before its first index: torch's own samplers do."""
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    return type(sampler) in _DRAW_ONCE
