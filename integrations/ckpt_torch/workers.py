"""What goes on in the workers of a DataLoader: they report their random state with every batch.

With it a worker of a later process can be put where an earlier one stood, without fetching anything again.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch.utils.data import get_worker_info

from ckpt_torch.memory import Memory
from ckpt_torch.rng import read_streams, write_streams

__all__ = ["Reported", "WorkerProbe", "WorkerStates"]

State = dict[str, dict[str, Any]]
"""Of one worker: `streams`, `generators` and `numbers`, each by name. What never changed is not in it."""


class Reported(NamedTuple):
    """A batch with its worker's report. A named tuple, as the pinning of memory passes through those."""

    batch: Any
    report: bytes


class WorkerProbe:
    """Stands before a loader's `collate_fn` and `worker_init_fn` while its workers are started.

    `states` are to be restored in the workers, by number.
    """

    def __init__(
        self,
        collate: Callable[[Any], Any],
        init: Callable[[int], None] | None,
        states: Mapping[int, State] | None = None,
    ) -> None:
        self._collate = collate
        self._init = init
        self._states = dict(states or {})
        self._memory: Memory | None = None
        self._last: State = {}
        self._sizes: dict[str, int] = {}

    def init(self, worker: int) -> None:
        """The `worker_init_fn`: the loader's own first, then what is to be restored."""
        if self._init is not None:
            self._init(worker)
        info = get_worker_info()
        assert info is not None
        self._memory = Memory({"dataset": info.dataset, "collate_fn": self._collate})
        self._sizes = self._memory.sizes()
        self._last = self._read()
        state = self._states.get(worker)
        if state:
            write_streams(state["streams"])
            self._memory.write(state, numbers=frozenset(state["numbers"]))

    def collate(self, samples: Any) -> Reported:
        """The `collate_fn`: the loader's own, and what has changed in this worker since its last batch."""
        batch = self._collate(samples)
        assert self._memory is not None
        info = get_worker_info()
        assert info is not None
        now = self._read()
        changed = {
            part: {name: value for name, value in now[part].items() if self._last[part].get(name) != value}
            for part in now
        }
        self._last = now
        sizes = self._memory.sizes()
        grown = [path for path, size in sizes.items() if self._sizes.get(path, size) != size]
        grown += self._memory.iterators
        return Reported(batch, pickle.dumps((info.id, changed, grown), pickle.HIGHEST_PROTOCOL))

    def _read(self) -> State:
        assert self._memory is not None
        return {"streams": read_streams(), **self._memory.read()}


class WorkerStates:
    """The workers as the training process knows them: after the last batch of each that it was handed."""

    def __init__(self, states: Mapping[int, State] | None = None) -> None:
        self.after: dict[int, State] = {worker: _copy(state) for worker, state in (states or {}).items()}
        self.grown: set[str] = set()
        self.carried: set[str] = set()
        self._before: dict[int, State] = dict(self.after)
        self._batch: dict[int, int] = {}

    def begin(self) -> None:
        """The workers that are there begin another epoch."""
        self._batch = {}
        self.carried |= self.grown

    def note(self, batch: int, report: bytes) -> None:
        """Take in the report that came with the `batch`-th batch of this epoch."""
        worker, changed, grown = pickle.loads(report)  # noqa: S301 - our own worker wrote it, an instant ago
        before = self.after.get(worker, {})
        self._before[worker] = before
        self.after[worker] = {part: before.get(part, {}) | values for part, values in changed.items()}
        self._batch[worker] = batch
        self.grown.update(grown)

    def at(self, batch: int) -> dict[int, State]:
        """Each worker as it stood when all batches before the `batch`-th had been made, and none after.

        Known for the batches of the last round only: those that each worker made last.
        """
        states = {
            worker: self._before.get(worker, {}) if self._batch.get(worker, -1) >= batch else state
            for worker, state in self.after.items()
        }
        return {worker: state for worker, state in states.items() if state}


def _copy(state: Mapping[str, Mapping[str, Any]]) -> State:
    return {part: dict(values) for part, values in state.items()}
