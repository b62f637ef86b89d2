"""Metric series on their way to the store and the catalog."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ckpt_core import CatalogError, CheckpointManager, StoreError, UsageError
from ckpt_core.stores import MemoryStore
from ckpt_core.tracker import log as tracker_log
from crash.wrappers import ScriptedStore


@pytest.fixture
def store() -> ScriptedStore:
    return ScriptedStore(MemoryStore())


@pytest.fixture
def manager(store: ScriptedStore) -> Iterator[CheckpointManager]:
    with CheckpointManager(store, experiment="x") as manager:
        yield manager


def series(manager: CheckpointManager, name: str) -> list[float]:
    return [point.value for point in manager.workspace.index.catalog().metric_series("x", name)]


def in_store(manager: CheckpointManager) -> list[tuple[str, int, float]]:
    return [(p.name, p.step, p.value) for _, _, points in manager.workspace.segments.all() for p in points]


def refuse(store: ScriptedStore, folder: str) -> None:
    def script(operation: str, key: str, when: str) -> None:
        if key.startswith(folder) and operation in ("create", "put"):
            raise StoreError("no room", kind="full", key=key)

    store.script = script


def test_a_commit_makes_them_durable(manager: CheckpointManager) -> None:
    manager.log({"loss": 0.5, "acc": np.float32(0.25)}, step=1)
    assert in_store(manager) == []
    manager.save({"w": 1}, step=1, wait=True)
    assert in_store(manager) == [("loss", 1, 0.5), ("acc", 1, 0.25)]
    assert series(manager, "loss") == [0.5]


def test_nan_and_infinities_are_values(manager: CheckpointManager) -> None:
    manager.log({"a": math.nan}, step=1)
    manager.log({"a": -math.inf}, step=2)
    manager.save({"w": 1}, step=2, wait=True)
    first, second = series(manager, "a")
    assert math.isnan(first)
    assert second == -math.inf


def test_values_of_two_attempts_are_told_apart(manager: CheckpointManager) -> None:
    manager.log({"a": 1.0}, step=1)
    manager.begin_attempt(None)
    manager.log({"a": 2.0}, step=1)
    manager.save({"w": 1}, step=1, wait=True)
    assert [attempt.number for _, attempt, _ in manager.workspace.segments.all()] == [1, 1]
    assert len({attempt.id for _, attempt, _ in manager.workspace.segments.all()}) == 2
    assert series(manager, "a") == [2.0]


def test_a_store_without_room_fails_no_save_and_loses_no_value(
    manager: CheckpointManager, store: ScriptedStore, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(store, "metrics/")
    manager.log({"a": 1.0}, step=1)
    assert manager.save({"w": 1}, step=1, wait=True).result().step == 1
    assert "1 metric values are kept in memory" in caplog.text
    store.script = None
    manager.log({"a": 2.0}, step=2)
    manager.save({"w": 1}, step=2, wait=True)
    assert in_store(manager) == [("a", 1, 1.0), ("a", 2, 2.0)]
    assert series(manager, "a") == [1.0, 2.0]


def test_what_the_catalog_missed_it_is_told_later(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> Any:
        raise CatalogError("away", kind="unavailable")

    manager.log({"a": 1.0}, step=1)
    monkeypatch.setattr(manager.workspace.index, "catalog", gone)
    manager.save({"w": 1}, step=1, wait=True)
    assert in_store(manager) == [("a", 1, 1.0)]
    monkeypatch.undo()
    assert series(manager, "a") == []
    manager.save({"w": 1}, step=2, wait=True)
    assert series(manager, "a") == [1.0]


def test_many_values_are_written_without_waiting_for_a_save(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_log, "_FLUSH_AT", 4)
    log = tracker_log.MetricLog(manager.workspace, "x")
    attempt = manager.attempt
    for step in range(3):
        log.add(attempt, {"a": float(step)}, step)
    assert in_store(manager) == []
    log.add(attempt, {"a": 3.0}, 3)
    assert len(in_store(manager)) == 4


def test_a_failure_is_not_tried_again_at_every_value(
    manager: CheckpointManager, store: ScriptedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_log, "_FLUSH_AT", 4)
    log = tracker_log.MetricLog(manager.workspace, "x")
    attempt = manager.attempt
    tries = []

    def script(operation: str, key: str, when: str) -> None:
        if operation == "create" and key.startswith("metrics/"):
            tries.append(key)
            raise StoreError("no room", kind="full")

    store.script = script
    for step in range(12):
        log.add(attempt, {"a": float(step)}, step)
    assert len(tries) == 3
    store.script = None
    assert log.flush() == 0
    assert [value for _, _, value in in_store(manager)] == [float(step) for step in range(12)]


@pytest.mark.parametrize("step", [1.5, "1", None, (1 << 62) + 1, -(1 << 62) - 1])
def test_steps_of_metrics_are_whole_numbers(manager: CheckpointManager, step: Any) -> None:
    with pytest.raises(UsageError, match="whole number"):
        manager.log({"a": 1.0}, step=step)


def test_a_step_from_numpy_is_written_as_a_number(manager: CheckpointManager) -> None:
    manager.log({"a": 1.0}, step=np.int64(3))
    manager.save({"w": 1}, step=3, wait=True)
    assert in_store(manager) == [("a", 3, 1.0)]


def test_a_step_that_is_refused_costs_no_other_value(manager: CheckpointManager) -> None:
    manager.log({"a": 1.0}, step=1 << 62)
    with pytest.raises(UsageError, match="whole number"):
        manager.log({"a": 2.0}, step=1 << 70)
    manager.save({"w": 1}, step=3, wait=True)
    assert in_store(manager) == [("a", 1 << 62, 1.0)]
    assert series(manager, "a") == [1.0]


def test_what_the_catalog_was_told_late_is_not_counted_twice(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> Any:
        raise CatalogError("away", kind="unavailable")

    manager.log({"a": 1.0}, step=1)
    with monkeypatch.context() as patch:
        patch.setattr(manager.workspace.index, "catalog", gone)
        manager._metrics.flush()
    assert manager.tracker.metric("x", "a").values.tolist() == [1.0]  # now the catalog has all segments
    manager._metrics.flush()
    manager.log({"a": 2.0}, step=2)
    with monkeypatch.context() as patch:
        patch.setattr(manager.workspace.index, "tell", lambda what: True)  # killed in between
        manager._metrics.flush()
    assert manager.tracker.metric("x", "a").values.tolist() == [1.0, 2.0]


def test_while_the_catalog_is_away_few_values_are_kept_for_it(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_log, "_UNTOLD", 10)
    log = tracker_log.MetricLog(manager.workspace, "x")
    attempt = manager.attempt
    with monkeypatch.context() as patch:
        patch.setattr(manager.workspace.index, "tell", lambda what: False)
        for step in range(20):
            log.add(attempt, {"a": float(step), "b": 0.0}, step)
            log.flush()
    assert sum(len(untold.points) for untold in log._untold) == 10
    log.flush()
    assert log._untold == []
    assert len(manager.tracker.metric("x", "a")) == 20  # the store has all of them
