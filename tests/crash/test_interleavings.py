"""Saves, prunes and forgets of several processes at once: whatever the order, nothing acknowledged is lost.

The order of their store operations is drawn from seeds; a failure prints the seed and the trace.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, KeepLast, StoreError
from ckpt_core.maintenance import deletion
from ckpt_core.maintenance import prune as prune_module
from ckpt_core.maintenance.deletion import execute_prune
from ckpt_core.maintenance.prune import plan_prune
from ckpt_core.maintenance.verify import verify
from ckpt_core.repository import Leases, Repository
from ckpt_core.stores import MemoryStore
from contract.store_case import commit, load, new_repository
from crash.interleaving import ActorStore, Schedule

CHUNK = 4096
NO_CATALOG = "sqlite:////proc/nowhere/catalog.db"  # the store answers alone, which is quicker here


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of a few kilobytes are worth a rewrite, so that small states show what large ones do."""
    monkeypatch.setattr(prune_module, "_REWRITE_AT_LEAST", CHUNK)


def rows(*values: int) -> np.ndarray[Any, Any]:
    return np.repeat(np.array(values, np.uint8), CHUNK)


def checked(inner: MemoryStore, expected: dict[str, list[int]]) -> None:
    """Everything that is visible verifies, and what was acknowledged is what was saved."""
    repository = Repository.open(inner)
    assert verify(repository).ok, verify(repository).problems
    keys = {found.id: found.key for found in repository.manifest_keys()}
    for checkpoint, values in expected.items():
        for mode in ("full", "lazy"):
            np.testing.assert_array_equal(load(repository, keys[checkpoint], verify=mode)["w"], rows(*values))


class Scene:
    """A store with one checkpoint that a training process takes for its base, and others around it."""

    def __init__(self) -> None:
        self.inner = MemoryStore()
        repository = new_repository(self.inner)
        self.training = ActorStore(self.inner, "training")
        self.manager = CheckpointManager(self.training, experiment="digits", catalog=NO_CATALOG)
        saved = self.save(1, range(10))
        self.base = saved
        self.other = commit(
            repository, {"w": rows(1, 2, 30)}, 2, repository.read(saved.key).manifest, experiment="other"
        )

    def save(self, step: int, values: Any) -> Any:
        return self.manager.save({"w": rows(*values)}, step=step, wait=True).result()

    def pruner(self, name: str, *, forgets: bool) -> tuple[ActorStore, Callable[[], object]]:
        store = ActorStore(self.inner, name)
        repository = Repository.open(store)

        def act() -> None:
            if forgets:
                repository.forget(self.base.key)
            prune(repository)

        return store, act


def prune(repository: Repository, **options: Any) -> None:
    with suppress_locked():
        execute_prune(repository, plan_prune(repository, **options))


@contextmanager
def suppress_locked() -> Iterator[None]:
    """Of two prunes at once one may be told to come again, or both."""
    try:
        yield
    except StoreError as error:
        if error.kind != "locked":
            raise


def play(seed: int, actors: dict[str, tuple[ActorStore, Callable[[], object]]]) -> dict[str, Any]:
    schedule = Schedule(seed)
    for store, _ in actors.values():
        store.schedule = schedule
    try:
        return schedule.run({name: act for name, (_, act) in actors.items()})
    except BaseException:
        print(f"seed {seed}", *schedule.trace, sep="\n  ")
        raise
    finally:
        for store, _ in actors.values():
            store.schedule = None


def save_beside_prune(seed: int) -> tuple[Scene, Any, list[int]]:
    """The training process still takes chunks of its base for known, while others forget and delete it."""
    scene = Scene()
    values = random.Random(seed).choice([(0, 1, 2, 40), (8, 9), (1, 2), tuple(range(10)), (41,)])
    outcome = play(
        seed,
        {
            "training": (scene.training, lambda: scene.save(5, values)),
            "pruner": scene.pruner("pruner", forgets=True),
        },
    )
    scene.manager.close()
    return scene, outcome["training"], list(values)


def test_a_save_beside_a_prune_of_its_base() -> None:
    for seed in range(200):
        scene, saved, values = save_beside_prune(seed)
        checked(scene.inner, {saved.id: values, scene.other.manifest.id: [1, 2, 30]})


@pytest.mark.parametrize("half", ["save", "prune"])
def test_the_schedules_are_worth_something(monkeypatch: pytest.MonkeyPatch, half: str) -> None:
    """With either half of the handshake between saves and prunes taken out, some schedule loses data."""
    if half == "save":  # the lease comes to nothing, and nobody notices
        monkeypatch.setattr(Leases, "_all", lambda self: iter(()))
    else:
        monkeypatch.setattr(deletion._Execution, "_look_again", lambda self: None)
    assert any(not verify(Repository.open(save_beside_prune(seed)[0].inner)).ok for seed in range(200))


def test_a_save_beside_two_prunes() -> None:
    for seed in range(150):
        scene = Scene()
        values = random.Random(seed).choice([(0, 1, 2, 40), (8, 9), (5, 6, 7)])
        outcome = play(
            seed,
            {
                "training": (scene.training, lambda s=scene, v=values: s.save(5, v)),
                "one": scene.pruner("one", forgets=True),
                "two": scene.pruner("two", forgets=False),
            },
        )
        saved = outcome["training"]
        checked(scene.inner, {saved.id: list(values), scene.other.manifest.id: [1, 2, 30]})
        # And what they left behind, the next one clears away.
        repository = Repository.open(scene.inner)
        repository.forget(next(found.key for found in repository.manifest_keys() if found.id == saved.id))
        for _ in range(2):
            execute_prune(repository, plan_prune(repository, orphan_seconds=-1))
        checked(scene.inner, {scene.other.manifest.id: [1, 2, 30]})
        assert sum(info.size for info in scene.inner.list("packs")) < 8 * CHUNK
        scene.manager.close()


def test_retention_beside_a_prune_and_a_reader() -> None:
    """The reader gets a whole checkpoint, the newest that there is or one that was, and never a mixture."""
    for seed in range(60):
        inner = MemoryStore()
        new_repository(inner)
        training, pruning, reading = (ActorStore(inner, name) for name in ("training", "pruner", "reader"))
        manager = CheckpointManager(
            training, experiment="digits", catalog=NO_CATALOG, retention=[KeepLast(1)]
        )
        reader = CheckpointManager(reading, experiment="digits", catalog=NO_CATALOG)
        repository = Repository.open(pruning)
        for step in (0, 1):
            manager.save({"w": rows(*values_of(step))}, step=step, wait=True)

        def train(manager: CheckpointManager = manager) -> list[Any]:
            return [
                manager.save({"w": rows(*values_of(step))}, step=step, wait=True).result() for step in (2, 3)
            ]

        outcome = play(
            seed,
            {
                "training": (training, train),
                "pruner": (pruning, lambda r=repository: prune(r)),
                "reader": (reading, lambda r=reader: read(r)),
            },
        )
        assert (manager.failures, manager._saver.unfinished) == ([], [])
        assert [c.step for c in manager.checkpoints()] == [3]
        checked(inner, {outcome["training"][-1].id: values_of(3)})
        manager.close()
        reader.close()


def values_of(step: int) -> list[int]:
    return [*range(10 - 3 * step), 50 + step]


def read(reader: CheckpointManager) -> None:
    """Retention may take each choice away under the reader's hands: it does not notice."""
    state = reader.load()
    assert reader.loaded is not None
    assert state["w"][::CHUNK].tolist() == values_of(reader.loaded.step)
