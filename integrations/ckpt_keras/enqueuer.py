"""The workers of a `PyDataset`: started when a pass begins, at any batch, with randomness that can be restored.

Keras' own enqueuer draws the order of the batches in a thread that runs beside the training, and hands leftovers
of one epoch to the next. Worker processes inherit one random state and give its numbers to whichever batch they
come by, so that no two runs are the same. Here the order is drawn where the pass begins, a pass is one pass, and
a worker process seeds its generators anew for each batch. In worker threads nothing can be done about it: they
share the generators of the process.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import queue
import random
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
from keras.src.trainers.data_adapters import py_dataset_adapter

from ckpt_keras.memory import Memory
from ckpt_keras.rng import host_streams

if TYPE_CHECKING:

    class OrderedEnqueuer:
        def __init__(self, *_: Any, **__: Any) -> None: ...
        def start(self) -> None: ...
        def stop(self, drain_queue_and_join: bool = True) -> None: ...
        def get(self) -> Iterator[Any]: ...
        def is_running(self) -> bool: ...
        def _send_py_dataset(self) -> None: ...
else:
    OrderedEnqueuer = py_dataset_adapter.OrderedEnqueuer

__all__ = ["TrackedEnqueuer"]

_log = logging.getLogger("ckpt_core.keras.data")
_LOOKED_AT = 32


class TrackedEnqueuer(OrderedEnqueuer):
    """In the place of the enqueuer that Keras made for `dataset`."""

    uid: int
    running: bool
    future_queue: queue.Queue[Any]
    ready_queue: queue.Queue[Any]
    executor_fn: Any

    def __init__(self, dataset: Any, *, shuffle: bool, name: str) -> None:
        super().__init__(
            dataset,
            workers=dataset.workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=dataset.max_queue_size,
            shuffle=shuffle,
        )
        self._name = name
        self._dataset = dataset
        self._length: int | None = dataset.num_batches
        self._shuffled = shuffle
        self.indices: Iterator[int] = iter(())

    def batches(self, number: int, first: int) -> Iterator[Any]:
        """Pass `number` of the data from its `first` batch on; its order is drawn now."""
        self.halt()
        streams = {name: stream.read() for name, stream in host_streams().items()}
        material = hashlib.sha256(repr((number, streams)).encode()).digest()
        if self._length is None:
            self.indices = itertools.count(first)
        else:
            order = list(range(self._length))
            if self._shuffled:
                random.shuffle(order)
            self.indices = iter(order[first:])
        self.py_dataset = self._prepared(material)
        super().start()
        return self._deliver(first)

    def _deliver(self, first: int) -> Iterator[Any]:
        found = self.get()
        if self._length is None:
            yield from found
            return
        for _ in range(first, self._length):
            yield next(found)
        self.halt()

    def _prepared(self, material: bytes) -> Any:
        if self._dataset.use_multiprocessing:
            return _Seeded(self._dataset, material)
        return _Watched(self._dataset, self._name)

    def start(self) -> None:
        """Not when an epoch begins, but when a pass does."""

    def stop(self, drain_queue_and_join: bool = True) -> None:
        """At the end of an epoch; endless data goes on in the next one. When it is dropped, `drain` is False."""
        if self._length is not None or not drain_queue_and_join:
            super().stop(drain_queue_and_join)
            self._drop()

    def halt(self) -> None:
        """Ends the present pass, wherever it is."""
        super().stop(True)
        self._drop()

    def _drop(self) -> None:
        # What was fetched in advance belongs to the pass that is over.
        with self.ready_queue.mutex:
            self.ready_queue.queue.clear()

    def _run(self) -> None:
        """The thread that hands out the work. As Keras', but for the order, which is given."""
        try:
            self._send_py_dataset()
            with closing(self.executor_fn(py_dataset_adapter._SHARED_SEQUENCES)) as executor:
                for index in self.indices:
                    if not self.is_running():
                        break
                    work = executor.apply_async(py_dataset_adapter.get_index, (self.uid, index))
                    self.future_queue.put(work, block=True)
        except Exception as error:
            self.future_queue.put(error)


class _Seeded:
    """The data in a worker process: whatever it draws for a batch depends on the batch alone."""

    def __init__(self, dataset: Any, material: bytes) -> None:
        self._dataset = dataset
        self._material = material
        self._memory: Memory | None = None

    def __getitem__(self, index: int) -> Any:
        if self._memory is None:
            self._memory = Memory({"data": self._dataset})

        def seed(name: str) -> int:
            digest = hashlib.sha256(self._material + f"{index} {name}".encode()).digest()
            return int.from_bytes(digest[:4], "big")

        random.seed(seed("python"))
        np.random.seed(seed("numpy"))
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.manual_seed(seed("torch"))
        self._memory.reseed(seed)
        return self._dataset[index]


class _Watched:
    """The data in worker threads: looks whether it draws from what they share, and warns of it once."""

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset = dataset
        self._name = name
        self._streams = host_streams()
        self._memory = Memory({"data": dataset})
        self._left = _LOOKED_AT

    def __getitem__(self, index: int) -> Any:
        if self._left <= 0:
            return self._dataset[index]
        self._left -= 1
        before = self._read()
        batch = self._dataset[index]
        after = self._read()
        drawn = sorted(name for name in after if after[name] != before[name])
        if drawn and self._left > 0:
            self._left = 0
            _log.warning(
                "%s draws from a generator that its %d worker threads share (%s): in what order is chance, so that "
                "no two runs are the same, and no resume is exact. Use workers=1 or use_multiprocessing=True, or "
                "draw from a generator made from the batch's index",
                self._name, self._dataset.workers, ", ".join(drawn),
            )  # fmt: skip
        return batch

    def _read(self) -> dict[str, Any]:
        own: dict[str, Any] = self._memory.read()["streams"]
        return {name: stream.read() for name, stream in self._streams.items()} | own
