"""Whatever fails, and wherever: nothing acknowledged is lost, and no half checkpoint is seen.

Each test runs once without a fault to count the changes, then once for each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core.errors import StoreError
from ckpt_core.format.header import read_header
from ckpt_core.repository import References, Repository, layout
from ckpt_core.stores import LocalStore, MemoryStore, Store
from contract.faults import FaultyStore, PowerCut
from contract.store_case import commit, keys_of, load, new_repository, same

STATES = [
    {"w": np.arange(3000.0), "b": np.zeros(3, np.float32), "n": 1},
    {"w": np.where(np.arange(3000.0) == 700, -1, np.arange(3000.0)), "b": np.zeros(3, np.float32), "n": 2},
    {"w": np.arange(3000.0), "b": np.ones(3, np.float32), "new": np.arange(900), "n": 3},
    {"w": np.arange(3000.0), "b": np.ones(3, np.float32), "new": np.arange(900), "n": 4},
]


def train(store: Store, acknowledged: list[tuple[str, Any]]) -> None:
    """Saves each state, tags the second, forgets the first; notes what it was told is done."""
    repository = Repository.open(store)
    references = References(store)
    base = None
    for step, state in enumerate(STATES):
        committed = commit(repository, state, step, base=base)
        acknowledged.append(("saved", (committed.key, state)))
        base = committed.manifest
        if step == 1:
            references.set_tag("digits", "good", committed.manifest.id)
            acknowledged.append(("tagged", committed.manifest.id))
        if step == 2:
            first = acknowledged[0][1][0]
            repository.forget(first)
            acknowledged.append(("forgotten", first))


def check(store: Store, acknowledged: list[tuple[str, Any]], *, garbage: bool) -> None:
    """That all that was acknowledged holds, all that is seen is whole, and (no garbage) nothing else is there."""
    repository = Repository.open(store)
    seen = {key.key for key in repository.manifest_keys()}
    trash = {key.key for key in repository.manifest_keys(trash=True)}
    forgotten = {key for what, key in acknowledged if what == "forgotten"}
    for what, fact in acknowledged:
        if what == "saved" and fact[0] not in forgotten:
            assert fact[0] in seen or layout.trash_key(fact[0]) in trash
        if what == "tagged":
            assert References(store).of_experiment("digits")[0] == {"good": fact}
    assert not forgotten & seen
    named = set()
    for key in seen | trash:
        state = load(repository, key)
        assert any(same(state, each) for each in STATES)
        named |= {layout.pack_key(name) for name, _ in repository.read(key).packs}
    for info in store.list("packs"):
        with store.open(info.key) as reader:
            read_header(reader.read, reader.size, info.key)
        assert garbage or info.key in named, "a failed save left a pack behind"


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], Store]:
    """Makes a fresh store with a repository in it: in memory, or where a test asks for it, in a folder."""

    def fresh(number: int) -> Store:
        store = LocalStore(tmp_path / str(number)) if hasattr(request, "param") else MemoryStore()
        new_repository(store)
        return store

    return fresh


def changes_of(store: Store) -> list[str]:
    counting = FaultyStore(store)
    train(counting, [])
    assert counting.count == len(counting.log) >= 18
    return counting.log


def told(change: str) -> AbstractContextManager[object]:
    """What a failure of a change does to the save. A lease that cannot be deleted is over all the same."""
    if change.startswith("delete leases/"):
        return nullcontext()
    return pytest.raises(StoreError, match="scripted fault")


@pytest.mark.parametrize("how", ["refuse", "lose"])
def test_a_failure_at_any_change(make: Callable[[int], Store], how: str) -> None:
    for fail_at, change in enumerate(changes_of(make(0)), 1):
        store = make(fail_at)
        faulty = FaultyStore(store, fail_at=fail_at, how=how)
        acknowledged: list[tuple[str, Any]] = []
        with told(change):
            train(faulty, acknowledged)
        # A pack that stands although we were told that it does not is garbage, and prune's to find.
        check(store, acknowledged, garbage=how == "lose")
        rest: list[tuple[str, Any]] = []
        train(store, rest)
        check(store, rest, garbage=how == "lose")


@pytest.mark.parametrize("how", ["die", "die-after"])
def test_a_death_at_any_change(make: Callable[[int], Store], how: str) -> None:
    for fail_at in range(1, len(changes_of(make(0))) + 1):
        store = make(fail_at)
        faulty = FaultyStore(store, fail_at=fail_at, how=how)
        acknowledged: list[tuple[str, Any]] = []
        with pytest.raises(PowerCut):
            train(faulty, acknowledged)
        assert len(faulty.log) == fail_at - (how == "die")
        check(store, acknowledged, garbage=True)
        rest: list[tuple[str, Any]] = []
        train(store, rest)
        check(store, rest, garbage=True)


@pytest.mark.parametrize("make", ["folder"], indirect=True)
@pytest.mark.parametrize("how", ["refuse", "die-after"])
def test_a_failure_at_every_third_change_of_a_folder(make: Callable[[int], Store], how: str) -> None:
    for fail_at, change in list(enumerate(changes_of(make(0)), 1))[::3]:
        store = make(fail_at)
        acknowledged: list[tuple[str, Any]] = []
        with told(change) if how == "refuse" else pytest.raises(PowerCut):
            train(FaultyStore(store, fail_at=fail_at, how=how), acknowledged)
        check(store, acknowledged, garbage=how != "refuse")


def test_a_manifest_is_written_after_all_that_it_names(make: Callable[[int], Store]) -> None:
    log = changes_of(make(0))
    standing: set[str] = set()
    for change in log:
        what, *keys = change.split()
        if what == "commit":
            if keys[0].startswith("checkpoints/"):
                assert standing, "a manifest before its pack"
            standing |= set(keys)
    kinds = [change.split("/")[0] for change in log if change.startswith("commit")]
    assert kinds == ["commit packs", "commit checkpoints"] * 3 + [
        "commit checkpoints"
    ]  # the last changed nothing


def test_a_store_whose_making_fails_is_made_by_the_next(make: Callable[[int], Store]) -> None:
    for how in ("refuse", "lose", "die", "die-after"):
        for fail_at in (1, 2, 3):
            store = MemoryStore()
            with pytest.raises((StoreError, PowerCut)):
                Repository.open(FaultyStore(store, fail_at=fail_at, how=how), create=True)
            repository = Repository.open(store, create=True)
            assert same(load(repository, commit(repository, STATES[0]).key), STATES[0])


def test_nothing_is_left_of_what_failed(make: Callable[[int], Store]) -> None:
    store = make(0)
    before = keys_of(store)
    repository = Repository(FaultyStore(store, fail_at=7), Repository.open(store).document)
    with pytest.raises(StoreError):
        commit(repository, STATES[0])
    assert keys_of(store) == before
