"""Attempts: what continues what, what is counted from where, and managers that work beside each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, KeepLast, UsageError
from ckpt_core.stores import MemoryStore


def state(step: int) -> dict[str, Any]:
    return {"big": np.arange(10_000), "w": np.full(8, step)}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def opened(store: MemoryStore, experiment: str = "x", **options: Any) -> CheckpointManager:
    return CheckpointManager(store, experiment=experiment, **options)


def test_the_first_attempt_is_its_own_lineage(store: MemoryStore) -> None:
    with opened(store) as manager:
        attempt = manager.attempt
        assert (attempt.number, attempt.lineage, attempt.resumed_from) == (1, attempt.id, None)
        assert manager.attempt is attempt


def test_a_second_process_that_loads_continues_and_dedupes(store: MemoryStore) -> None:
    with opened(store) as first:
        saved = first.save(state(1), step=1, wait=True).result()
        lineage = first.attempt.lineage
    with opened(store) as second:
        second.load()
        checkpoint = second.save(state(2), step=2, wait=True).result()
        attempt = second.attempt
    assert (attempt.number, attempt.lineage) == (2, lineage)
    assert (attempt.resumed_from, attempt.resumed_step) == (saved.id, 1)
    assert checkpoint.parent == saved.id
    assert checkpoint.written_bytes < 80_000


def test_a_second_process_that_loads_nothing_starts_anew(store: MemoryStore) -> None:
    with opened(store) as first:
        first.save(state(1), step=1, wait=True)
    with opened(store) as second:
        checkpoint = second.save(state(1), step=1, wait=True).result()
        assert second.attempt.number == 2
        assert second.attempt.lineage == second.attempt.id
        assert checkpoint.parent is None
        assert checkpoint.written_bytes >= 80_000


def test_the_parent_is_the_last_that_was_saved(store: MemoryStore) -> None:
    with opened(store) as manager:
        ids = [manager.save(state(step), step=step).result(60) for step in (1, 2, 3)]
        assert [c.parent for c in ids] == [None, ids[0].id, ids[1].id]
        manager.begin_attempt(ids[0])
        again = manager.save(state(4), step=4, wait=True).result()
        assert again.parent == ids[0].id
        assert again.attempt.lineage == ids[0].attempt.lineage


def test_a_checkpoint_of_another_experiment_begins_a_lineage_of_its_own(store: MemoryStore) -> None:
    with opened(store, "pretraining") as manager:
        there = manager.save(state(1000), step=1000, wait=True).result()
    with opened(store, "tuning") as manager:
        manager.load("pretraining@latest")
        checkpoint = manager.save(state(0), step=0, wait=True).result()
        attempt = manager.attempt
    assert (attempt.number, attempt.lineage) == (1, attempt.id)
    assert (attempt.resumed_from, attempt.resumed_step) == (there.id, 1000)
    assert checkpoint.parent is None
    assert checkpoint.written_bytes < 80_000  # its chunks are shared all the same


def test_a_resumed_training_counts_on(store: MemoryStore) -> None:
    with opened(store) as manager:
        manager.save(state(10), step=10, wait=True)
    with opened(store) as manager:
        manager.load()
        with pytest.raises(UsageError, match="goes backwards"):
            manager.save(state(3), step=3)
        assert manager.save(state(10), step=10, wait=True).result().step == 10


def test_a_base_that_cannot_be_read_costs_bytes_and_nothing_else(
    store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(store) as manager:
        first = manager.save(state(1), step=1, wait=True).result()
        data = store.get(first.key)
        store.put(first.key, data[:-9])
        manager.begin_attempt(first)
        checkpoint = manager.save(state(2), step=2, wait=True).result()
        assert checkpoint.written_bytes >= 80_000
        assert checkpoint.parent == first.id
        assert "write everything anew" in caplog.text


def test_an_attempt_waits_for_the_saves_of_the_one_before(store: MemoryStore) -> None:
    with opened(store) as manager:
        manager.save(state(1), step=1)
        attempt = manager.begin_attempt(None)
        assert attempt.number == 2


def test_two_managers_on_one_store_see_each_other(store: MemoryStore) -> None:
    with opened(store) as one, opened(store) as two:
        one.save(state(1), step=1, wait=True)
        assert [c.step for c in two.checkpoints()] == [1]
        assert two.latest() == one.latest()
        two.tag("latest", "seen")
        assert one.resolve("seen").step == 1
        assert one.latest().tags == ("seen",)
        one.forget("latest")
        assert two.checkpoints() == []


def test_two_managers_in_one_lineage_lose_nothing_to_each_other(store: MemoryStore) -> None:
    """Each deletes by its own policy what the other still takes for its base."""
    with opened(store) as first:
        first.save(state(1), step=1, wait=True)
    with (
        opened(store, retention=[KeepLast(1)]) as one,
        opened(store, retention=[KeepLast(1)]) as two,
    ):
        one.load()
        two.load()
        for step in range(2, 8):
            saved = (one if step % 2 else two).save(state(step), step=step, wait=True).result()
            assert saved in one.checkpoints()
            assert (one.load(saved.id)["w"] == step).all()
            assert one.verify().ok
        assert one.failures == two.failures == []


def test_retention_leaves_other_lineages_and_experiments_alone(store: MemoryStore) -> None:
    with opened(store, "other") as other:
        other.save(state(1), step=1, wait=True)
    with opened(store) as old:
        old.save(state(1), step=1, wait=True)
        old.save(state(2), step=2, wait=True)
    with opened(store, retention=[KeepLast(1)]) as manager:
        for step in (1, 2, 3):
            manager.save(state(step), step=step, wait=True)
        assert [c.step for c in manager.checkpoints()] == [1, 2, 3]
        assert manager.resolve("other@latest").step == 1
