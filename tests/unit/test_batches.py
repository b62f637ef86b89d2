"""Batches: by number, by time, on request; failures keep everything, in order."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence

import pytest

from ckpt_core.perf.batches import BatchProcessor


class Sink:
    """Where batches go; refuses as long as it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.refuse: bool | int = False
        self.came = threading.Event()

    def __call__(self, items: list[int]) -> Sequence[int]:
        if self.refuse is True:
            raise OSError("no room")
        left = items[len(items) - self.refuse :] if self.refuse else []
        self.batches.append(items[: len(items) - len(left)])
        self.came.set()
        return left


@pytest.fixture
def sink() -> Sink:
    return Sink()


def test_written_when_enough_wait(sink: Sink) -> None:
    batches = BatchProcessor(sink, max_items=3)
    for item in range(7):
        batches.add(item)
    assert sink.batches == [[0, 1, 2], [3, 4, 5]]
    assert batches.stats().waiting == 1
    assert batches.close() == 0
    assert sink.batches[-1] == [6]
    assert (batches.stats().written, batches.stats().batches, batches.stats().failures) == (7, 3, 0)


def test_weights_count(sink: Sink) -> None:
    batches = BatchProcessor(sink, max_items=10, weight=lambda item: item)
    batches.add(4)
    batches.add(5)
    assert sink.batches == []
    batches.add(1)
    assert sink.batches == [[4, 5, 1]]
    assert batches.stats().written == 10


def test_written_when_one_has_waited_long_enough(sink: Sink) -> None:
    batches = BatchProcessor(sink, max_seconds=0.01)
    for round_ in range(3):
        batches.add(round_)
        assert sink.came.wait(30)
        sink.came.clear()
    assert [item for batch in sink.batches for item in batch] == [0, 1, 2]
    batches.close()


def test_without_a_limit_of_time_there_is_no_thread(sink: Sink) -> None:
    before = threading.active_count()
    BatchProcessor(sink).add(1)
    assert threading.active_count() == before


def test_nothing_is_written_where_nothing_waits(sink: Sink) -> None:
    batches = BatchProcessor(sink)
    assert (batches.flush(), batches.close(), batches.close()) == (0, 0, 0)
    assert sink.batches == []


def test_what_raises_keeps_everything_in_order(sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    batches = BatchProcessor(sink, max_items=3)
    sink.refuse = True
    for item in range(5):
        batches.add(item)
    assert batches.flush() == 5
    assert "wait for the next batch: no room" in caplog.text
    sink.refuse = False
    batches.add(5)
    assert batches.flush() == 0
    assert sink.batches == [[0, 1, 2, 3, 4, 5]]
    assert batches.stats().failures == 2


def test_after_a_failure_as_many_more_come_before_the_next_try(sink: Sink) -> None:
    tries: list[int] = []

    def write(items: list[int]) -> Sequence[int]:
        tries.append(len(items))
        return items

    batches = BatchProcessor(write, max_items=4)
    for item in range(12):
        batches.add(item)
    assert tries == [4, 8, 12]
    assert batches.close() == 12


def test_part_of_a_batch_may_be_left(sink: Sink) -> None:
    batches = BatchProcessor(sink)
    for item in range(4):
        batches.add(item)
    sink.refuse = 2
    assert batches.flush() == 2
    sink.refuse = False
    batches.add(4)
    batches.close()
    assert sink.batches == [[0, 1], [2, 3, 4]]
    assert batches.stats().written == 5


def test_a_failure_is_made_up_for_in_time(sink: Sink) -> None:
    batches = BatchProcessor(sink, max_seconds=0.01)
    sink.refuse = True
    batches.add(1)
    batches.flush()
    sink.refuse = False
    assert sink.came.wait(30)
    assert sink.batches == [[1]]


def test_many_threads_lose_nothing(sink: Sink) -> None:
    batches = BatchProcessor(sink, max_items=50, max_seconds=0.001)

    def add(first: int) -> None:
        for item in range(first, first + 500):
            batches.add(item)

    threads = [threading.Thread(target=add, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert batches.close() == 0
    written = [item for batch in sink.batches for item in batch]
    assert sorted(written) == [1000 * n + item for n in range(4) for item in range(500)]
    for n in range(4):
        assert [item for item in written if item // 1000 == n] == list(range(1000 * n, 1000 * n + 500))


def test_a_processor_that_nobody_holds_goes_with_its_thread(sink: Sink) -> None:
    before = set(threading.enumerate())
    batches = BatchProcessor(sink, max_seconds=3600)
    batches.add(1)
    (thread,) = set(threading.enumerate()) - before
    del batches
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()


def test_an_interruption_loses_nothing(sink: Sink) -> None:
    def write(items: list[int]) -> Sequence[int]:
        if not sink.came.is_set():
            sink.came.set()
            raise KeyboardInterrupt
        return sink(items)

    batches = BatchProcessor(write, max_items=2, max_seconds=0.01)
    batches.add(1)
    with pytest.raises(KeyboardInterrupt):
        batches.flush()
    assert batches.stats().waiting == 1
    batches.add(2)
    assert batches.close() == 0
    assert [item for batch in sink.batches for item in batch] == [1, 2]
