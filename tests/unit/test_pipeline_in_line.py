"""The catalog in line with the store without a listing, and the first answer without the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, CorruptionError, NotFoundError
from ckpt_core.maintenance import listings
from ckpt_core.pipeline import index as index_module
from ckpt_core.pipeline.resolve import candidates
from ckpt_core.stores import LocalStore, MemoryStore
from contract.catalog_case import lose
from crash.wrappers import CountingStore


def state(step: int) -> dict[str, Any]:
    return {"w": np.full(10, step)}


def save(manager: CheckpointManager, *steps: int, **options: Any) -> None:
    for step in steps:
        manager.save(state(step), step=step, wait=True, **options)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every change counts as long ago, and every listing is worth noting."""
    monkeypatch.setattr(listings, "SETTLED", -1e9)
    monkeypatch.setattr(index_module, "_WORTH_NOTING", 0)


@pytest.fixture
def filled(store_path: Path) -> Path:
    with CheckpointManager(store_path, experiment="x") as manager:
        save(manager, 1, 2, 3)
        manager.checkpoints()
    return store_path


def opened(path: Path, **options: Any) -> tuple[CheckpointManager, CountingStore]:
    store = CountingStore(LocalStore(path))
    catalog = f"sqlite:///{path / 'catalog.db'}"
    return CheckpointManager(store, experiment="x", **{"catalog": catalog, **options}), store


@pytest.fixture
def other(filled: Path, tmp_path: Path) -> Iterator[CheckpointManager]:
    """A manager of the same store with another catalog: it tells ours nothing."""
    with CheckpointManager(filled, experiment="x", catalog=f"sqlite:///{tmp_path / 'other.db'}") as manager:
        yield manager


@pytest.mark.usefixtures("settled")
class TestSettled:
    def test_a_new_process_lists_no_checkpoints(self, filled: Path) -> None:
        manager, store = opened(filled)
        with manager:
            manager.checkpoints()
        manager, store = opened(filled)
        with manager:
            store.reset()
            assert manager.resolve("latest").step == 3
            assert [c.step for c in manager.checkpoints()] == [1, 2, 3]
            assert manager.workspace.index.checkpoints() == manager.checkpoints()
            # The experiment's metric segments, and for the question about all, which experiments there are.
            assert store.operations["list"] == 2

    def test_what_others_do_is_seen(self, filled: Path, other: CheckpointManager) -> None:
        manager, _ = opened(filled)
        with manager:
            assert manager.latest().step == 3
            other.begin_attempt(other.latest())
            save(other, 4)
            assert manager.latest().step == 4
            other.forget("latest")
            assert manager.latest().step == 3
            other.tag("step=1", "t")
            other.pin("step=2")
            assert manager.resolve("t").step == 1
            assert [c.pinned for c in manager.checkpoints()] == [False, True, False]
            other.untag("t")
            other.unpin("step=2")
            with pytest.raises(NotFoundError):
                manager.resolve("t")
            for path in (filled / "checkpoints" / "x").iterdir():
                path.unlink()
            assert manager.latest() is None

    def test_an_experiment_of_somebody_else_is_found(self, filled: Path, tmp_path: Path) -> None:
        manager, _ = opened(filled)
        with (
            manager,
            CheckpointManager(filled, experiment="y" * 200, catalog=f"sqlite:///{tmp_path}/o.db") as other,
        ):
            save(other, 7)
            assert [c.step for c in manager.workspace.index.checkpoints()] == [1, 2, 3, 7]
            other.forget("latest")
            assert [c.step for c in manager.workspace.index.checkpoints()] == [1, 2, 3]

    def test_rows_that_are_dropped_come_back(self, filled: Path) -> None:
        manager, _ = opened(filled)
        with manager:
            catalog = manager.workspace.index.catalog()
            lose(catalog, [manager.latest().id])
        manager, _ = opened(filled)
        with manager:
            assert manager.latest().step == 3

    def test_a_damaged_manifest_is_told_by_every_process(self, filled: Path) -> None:
        manager, _ = opened(filled)
        with manager:
            hurt = manager.latest()
            lose(manager.workspace.index.catalog(), [hurt.id])
        (filled / hurt.key).write_bytes(b"{}")
        for _ in range(2):
            manager, _ = opened(filled)
            with manager, pytest.raises(CorruptionError):
                manager.load("latest", fallback=False)


def test_right_after_a_change_nothing_is_noted(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second change may bear the date of the first."""
    monkeypatch.setattr(index_module, "_WORTH_NOTING", 0)
    monkeypatch.setattr(listings, "SETTLED", 3600.0)
    manager, store = opened(filled)
    with manager:
        for _ in range(3):
            store.reset()
            assert manager.latest().step == 3
            assert store.operations["list"] > 0
        assert manager.workspace.index.catalog().listing_word("x") is None


@pytest.mark.parametrize("catalog", ["sqlite://", None])
def test_few_are_listed_anew_by_each_process_and_then_remembered(
    filled: Path, catalog: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "SETTLED", -1e9)
    manager, store = opened(filled, **({} if catalog is None else {"catalog": catalog}))
    with manager:
        manager.latest()
        store.reset()
        assert manager.latest().step == 3
        assert store.operations["list"] == 0
        assert manager.workspace.index.catalog().listing_word("x") is None


def test_the_first_answer_costs_the_same_however_many_there_are() -> None:
    """By `latest` and `best` one manifest is read, and of the catalog one row is asked for."""
    store = CountingStore(MemoryStore())
    with CheckpointManager(store, experiment="x", metric="loss") as manager:
        for step in range(40):
            save(manager, step, metrics={"loss": (step - 20) ** 2})
        manager.checkpoints()
        for reference, step in (("latest", 39), ("best", 20)):
            store.reset()
            assert (manager.load(reference)["w"] == step).all()
            assert store.operations["list"] == 0
            assert len([key for key in store.objects_read() if key.startswith("checkpoints/")]) == 1


@pytest.mark.parametrize("away", [False, True])
def test_others_follow_in_order(away: bool, tmp_path: Path) -> None:
    with CheckpointManager(
        MemoryStore(), experiment="x", metric="loss", catalog=f"sqlite:///{tmp_path}/c.db"
    ) as m:
        for step in range(30):
            save(m, step, metrics={"loss": step % 7})
        first = m.attempt
        m.begin_attempt()
        save(m, 5, 6, metrics={"loss": 9.0})
        m.begin_attempt(m.resolve("step=29"))
        save(m, 30)
        assert m.attempt.lineage == first.lineage
        if away:
            m.workspace.index.close()
        index = m.workspace.index
        found = [c.step for c in candidates(index, "latest", experiment="x")]
        assert found == list(range(30, -1, -1))
        best = [c.step for c in candidates(index, "best", experiment="x", metric="loss")]
        assert best == sorted(range(30), key=lambda step: (step % 7, step))
        worst = [c.step for c in candidates(index, "best", experiment="x", metric="loss", mode="max")]
        assert worst == sorted(range(30), key=lambda step: (-(step % 7), step))


def test_a_load_falls_back_over_many_damaged_ones(store_path: Path) -> None:
    with CheckpointManager(store_path, experiment="x", metric="loss") as manager:
        for step in range(20):
            save(manager, step, metrics={"loss": float(step)})
        packs = sorted((store_path / "packs" / "x").iterdir())
        for path in packs[2:]:
            path.write_bytes(b"\0" * path.stat().st_size)
        assert (manager.load("latest")["w"] == 1).all()
        assert manager.loaded.step == 1
        for path in packs[:2]:
            path.write_bytes(b"\0" * path.stat().st_size)
        with pytest.raises(CorruptionError) as caught:
            manager.load("best")
        assert caught.value.__notes__ == ["none of the 19 checkpoints to fall back to could be loaded either"]
