"""The catalog is an index: lost, locked, corrupt or replaced in the midst of work, nothing fails by it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, KeepBest, KeepLast, MissingExtraError, StoreError, UsageError, clock
from ckpt_core.catalog import Catalog
from ckpt_core.pipeline import index as index_module
from ckpt_core.stores import LocalStore, MemoryStore
from contract.catalog_case import lose
from crash.wrappers import CountingStore, ScriptedStore


def state(step: int) -> dict[str, Any]:
    return {"w": np.full(10, step)}


def steps(manager: CheckpointManager) -> list[int]:
    return [c.step for c in manager.checkpoints()]


def in_catalog(store_path: Path) -> list[int]:
    """What a catalog opened afresh holds, without a look at the store."""
    with Catalog.open(f"sqlite:///{store_path / 'catalog.db'}") as catalog:
        return [c.step for c in catalog.checkpoints()]


def remove_catalog(store_path: Path) -> None:
    for path in store_path.glob("catalog.db*"):
        path.unlink()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for a locked catalog for a moment only."""
    monkeypatch.setattr(index_module, "_TIMEOUT", 0.05)
    monkeypatch.setattr(index_module, "_SLOW", 0.01)


def test_a_catalog_that_cannot_be_made_stops_nothing(
    store_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store_path.mkdir()
    (store_path / "catalog.db").mkdir()  # nobody can open that as a database
    with CheckpointManager(
        store_path, experiment="x", metric="loss", retention=[KeepLast(1), KeepBest(1)]
    ) as manager:
        for step, loss in ((1, 0.1), (2, 0.3), (3, 0.2)):
            manager.save(state(step), step=step, metrics={"loss": loss}, tags=[f"t{step}"], wait=True)
        assert steps(manager) == [1, 3]
        assert manager.latest().step == 3
        assert manager.best().step == 1
        assert (manager.load("best")["w"] == 1).all()
        assert manager.resolve("t3").step == 3
        manager.pin("latest")
        assert manager.latest().pinned
        manager.begin_attempt(manager.latest())
        assert manager.attempt.number == 2
        assert manager.verify().ok
        assert manager.failures == []
    assert caplog.text.count("going on without the catalog") == 1


def test_it_is_brought_in_line_when_it_is_back(store_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store_path.mkdir()
    (store_path / "catalog.db").mkdir()
    with CheckpointManager(store_path, experiment="x") as manager:
        manager.log({"a": 1.0}, step=1)
        manager.save(state(1), step=1, tags=["good"], wait=True)
        (store_path / "catalog.db").rmdir()
        manager.save(state(2), step=2, wait=True)
        assert steps(manager) == [1, 2]
    assert "the catalog is back" in caplog.text
    with Catalog.open(f"sqlite:///{store_path / 'catalog.db'}") as catalog:
        assert [(c.step, c.tags) for c in catalog.checkpoints()] == [(1, ("good",)), (2, ())]
        assert [point.value for point in catalog.metric_series("x", "a")] == [1.0]


@pytest.mark.usefixtures("impatient")
def test_locked_by_another_process(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CheckpointManager(store_path, experiment="x") as manager:
        manager.save(state(1), step=1, wait=True)
        locker = sqlite3.connect(store_path / "catalog.db", isolation_level=None)
        locker.execute("BEGIN IMMEDIATE")
        asked = []
        monkeypatch.setattr(index_module.Index, "catalog", _counted(asked))
        manager.save(state(2), step=2, wait=True)
        manager.save(state(3), step=3, wait=True)
        assert len(asked) == 1  # one that takes long to refuse is left in peace for a while
        assert steps(manager) == [1, 2, 3]
        locker.execute("ROLLBACK")
        locker.close()
        later = clock.monotonic() + 1000
        monkeypatch.setattr(clock, "monotonic", lambda: later)
        manager.save(state(4), step=4, wait=True)
        assert steps(manager) == [1, 2, 3, 4]
    assert in_catalog(store_path) == [1, 2, 3, 4]


def _counted(asked: list[int]) -> Any:
    original = index_module.Index.catalog

    def catalog(self: index_module.Index) -> Catalog:
        asked.append(1)
        return original(self)

    return catalog


def test_corrupted_while_it_is_open(store_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with CheckpointManager(store_path, experiment="x") as manager:
        manager.save(state(1), step=1, wait=True)
        manager.workspace.index.catalog().close()  # so that pages are read anew
        manager.workspace.index._catalog = None
        for path in store_path.glob("catalog.db*"):
            path.write_bytes(b"\x5a" * 8192)
        manager.save(state(2), step=2, wait=True)
        assert steps(manager) == [1, 2]
        assert (manager.load()["w"] == 2).all()
        assert "going on without the catalog" in caplog.text
        remove_catalog(store_path)
        manager.save(state(3), step=3, wait=True)
        assert steps(manager) == [1, 2, 3]
    assert in_catalog(store_path) == [1, 2, 3]


def test_deleted_while_it_is_open(store_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a look at the file, everything would go on into a file that nobody can see."""
    with CheckpointManager(store_path, experiment="x") as manager:
        manager.log({"a": 1.0}, step=1)
        manager.save(state(1), step=1, wait=True)
        manager.forget("latest")
        manager.save(state(2), step=2, wait=True)
        remove_catalog(store_path)
        manager.save(state(3), step=3, wait=True)
        assert "deleted or replaced while it was open" in caplog.text
        assert steps(manager) == [2, 3]
    with Catalog.open(f"sqlite:///{store_path / 'catalog.db'}") as catalog:
        assert [c.step for c in catalog.checkpoints()] == [2, 3]


def test_one_that_was_lost_is_built_anew_by_whoever_comes_next(store_path: Path) -> None:
    with CheckpointManager(store_path, experiment="x") as manager:
        manager.log({"a": 1.0}, step=1)
        manager.save(state(1), step=1, tags=["t"], wait=True)
        manager.save(state(2), step=2, wait=True)
        manager.pin("latest")
        manager.forget("step=1")
    remove_catalog(store_path)
    with CheckpointManager(store_path, experiment="x") as manager:
        assert [(c.step, c.pinned) for c in manager.checkpoints()] == [(2, True)]
        catalog = manager.workspace.index.catalog()
        assert [point.value for point in catalog.metric_series("x", "a")] == [1.0]
        assert len(catalog.checkpoints("x", include_forgotten=True)) == 2


def test_a_catalog_of_somebody_else_is_not_needed(store_path: Path, tmp_path: Path) -> None:
    """Two who name different catalogs for one store agree all the same: the store is the truth."""
    other = f"sqlite:///{tmp_path / 'mine.db'}"
    with (
        CheckpointManager(store_path, experiment="x") as one,
        CheckpointManager(store_path, experiment="x", catalog=other) as two,
    ):
        one.save(state(1), step=1, wait=True)
        one.save(state(2), step=2, wait=True)
        assert steps(two) == [1, 2]
        two.tag("step=1", "t")
        two.pin("step=1")
        two.forget("step=2")
        assert [(c.step, c.tags, c.pinned) for c in one.checkpoints()] == [(1, ("t",), True)]
        one.untag("t")
        one.unpin("latest")
        assert [(c.tags, c.pinned) for c in two.checkpoints()] == [((), False)]


def test_retention_looks_at_the_store_before_it_deletes(store_path: Path, tmp_path: Path) -> None:
    """Others pin, tag and forget by another catalog; by its own memory it would delete too much."""
    other = f"sqlite:///{tmp_path / 'mine.db'}"
    with (
        CheckpointManager(store_path, experiment="x", retention=[KeepLast(2)]) as training,
        CheckpointManager(store_path, experiment="x", catalog=other) as person,
    ):
        training.save(state(1), step=1, wait=True)
        person.pin("latest")
        training.save(state(2), step=2, wait=True)
        training.save(state(3), step=3, wait=True)
        training.save(state(4), step=4, wait=True)
        assert steps(training) == [1, 3, 4]
        person.forget("step=4")
        training.save(state(5), step=5, wait=True)
        assert steps(training) == [1, 3, 5]


def test_what_the_catalog_refuses_does_not_fail_a_save(
    store_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for error in (UsageError("cannot be stored"), ZeroDivisionError("a bug")):

        def refuse(self: Catalog, *arguments: Any, error: Exception = error) -> None:
            raise error

        with CheckpointManager(store_path, experiment="x") as manager:
            manager.attempt  # noqa: B018 - begun while the catalog is well
            monkeypatch.setattr(Catalog, "put_checkpoint", refuse)
            assert manager.save(state(1), step=1, wait=True).result().step == 1
            monkeypatch.undo()
            assert manager.failures == []
    assert "the catalog was not told" in caplog.text


def test_a_damaged_manifest_with_a_tag_breaks_no_question(store_path: Path) -> None:
    with CheckpointManager(store_path, experiment="x") as manager:
        manager.save(state(1), step=1, wait=True)
        hurt = manager.save(state(2), step=2, tags=["t"], wait=True).result()
        manager.pin("t")
    (store_path / hurt.key).write_bytes(b"{}")
    remove_catalog(store_path)
    with CheckpointManager(store_path, experiment="x") as manager:
        assert steps(manager) == [1]
        assert manager.latest().step == 1
        manager.tag("latest", "u")
        assert manager.resolve("u").step == 1
        assert [parsed.id for parsed, _ in manager.workspace.index.damaged("x")] == [hurt.id]
        assert manager.workspace.index.damaged("y") == []
        (store_path / hurt.key).unlink()
        assert manager.workspace.index.damaged("x") == []


def test_a_damaged_manifest_is_read_and_told_once(store_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = CountingStore(LocalStore(store_path))
    catalog = f"sqlite:///{store_path}-catalog.db"
    with CheckpointManager(store, experiment="x", catalog=catalog) as manager:
        hurt = manager.save(state(1), step=1, wait=True).result()
        lose(manager.workspace.index.catalog(), [hurt.id])
        (store_path / hurt.key).write_bytes(b"{}")
        store.reset()
        for _ in range(5):
            assert steps(manager) == []
        assert [key for key, _, _ in store.reads].count(hurt.key) == 1
        assert caplog.text.count("checkpoint left out") == 1


def test_a_store_that_fails_is_not_mistaken_for_a_lost_catalog(store_path: Path) -> None:
    store = ScriptedStore(LocalStore(store_path))
    with CheckpointManager(store, experiment="x", catalog="sqlite://") as manager:
        manager.save(state(1), step=1, wait=True)

        def script(operation: str, key: str, when: str) -> None:
            if operation == "list":
                raise StoreError("the network is down", kind="io")

        store.script = script
        with pytest.raises(StoreError, match="network"):
            manager.checkpoints()
        store.script = None
        assert steps(manager) == [1]


def test_a_catalog_that_was_never_possible_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises((UsageError, MissingExtraError)):
        CheckpointManager(tmp_path / "s", experiment="x", catalog="nonsense")
    with pytest.raises((UsageError, MissingExtraError)):
        CheckpointManager(tmp_path / "s", experiment="x", catalog="nodb:///x")


def test_a_store_of_another_kind_needs_a_catalog_named(tmp_path: Path) -> None:
    class Far(MemoryStore):
        def __init__(self) -> None:
            super().__init__("far://away")

    with pytest.raises(StoreError, match="name a catalog for far://away"):
        CheckpointManager(Far(), experiment="x")
    with pytest.raises(StoreError, match="name a catalog"):
        CheckpointManager(tmp_path / "what?", experiment="x")
    with CheckpointManager(Far(), experiment="x", catalog="sqlite://") as manager:
        assert manager.save(state(1), step=1, wait=True).result().step == 1


def test_questions_after_every_save_cost_the_same_however_many_there_are() -> None:
    """With a metric and retention, a save that deletes nothing lists nothing and reads nothing."""
    store = CountingStore(MemoryStore())
    with CheckpointManager(store, experiment="x", metric="loss", retention=[KeepLast(1000)]) as manager:
        counts = []
        for step in range(40):
            store.reset()
            manager.save(state(step), step=step, metrics={"loss": 1 / (step + 1)}, wait=True)
            counts.append(dict(store.operations))
        assert counts[5] == counts[39]
        assert "list" not in counts[39]
        assert "open" not in counts[39]
