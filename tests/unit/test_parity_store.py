"""Sidecars in a store: a manager writes them, a pack's end is theirs, and damage to them is found."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, CorruptionError, KeepLast, MissingExtraError, StoreError, UsageError
from ckpt_core.maintenance import prune as prune_module
from ckpt_core.maintenance.deletion import execute_prune
from ckpt_core.maintenance.parity import protect, protect_all, sidecars_in
from ckpt_core.maintenance.prune import plan_prune
from ckpt_core.maintenance.verify import verify
from ckpt_core.repository import Repository, layout
from ckpt_core.stores import MemoryStore, ObjectWriter
from contract.store_case import CHUNK, commit, new_repository
from crash.wrappers import ScriptedStore

pytest.importorskip("zfec")


def packs(repository: Repository) -> set[str]:
    found = (info.key.removeprefix("packs/") for info in repository.store.list("packs"))
    return {name for name in found if name.endswith(".safetensors")}


def rows(*values: int) -> np.ndarray[Any, Any]:
    return np.repeat(np.array(values, np.uint8), CHUNK)


def test_a_manager_gives_every_pack_that_it_names_parity(tmp_path: Path) -> None:
    state = {"a": np.arange(50_000), "b": np.arange(10)}
    with CheckpointManager(tmp_path, experiment="x") as manager:
        manager.save(state, step=1, wait=True)
        assert set(sidecars_in(manager.workspace.repository)) == set()
    with CheckpointManager(tmp_path, experiment="x", parity=10) as manager:
        manager.load()
        state["b"] = state["b"] + 1
        manager.save(state, step=2, wait=True)
        manager.wait()
        repository = manager.workspace.repository
        assert len(packs(repository)) == 2
        assert set(sidecars_in(repository)) == packs(repository)
        assert manager.verify().ok
        data = repository.store.list("packs")
        sizes = {
            info.key.endswith(".parity"): info.size
            for info in data
            if info.size > 100_000 or "parity" in info.key
        }
        assert sizes[True] < 0.14 * sizes[False]


@pytest.mark.parametrize("percent", [-1, 101, 10.0, True, "10"])
def test_what_is_no_percentage(tmp_path: Path, percent: Any) -> None:
    with pytest.raises(UsageError, match="parity="):
        CheckpointManager(tmp_path / "store", experiment="x", parity=percent)
    assert not (tmp_path / "store").exists()


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zfec", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ckpt-core\[parity\]'"):
        CheckpointManager(tmp_path / "store", experiment="x", parity=10)
    with CheckpointManager(tmp_path / "store", experiment="x") as manager:
        manager.save({"a": 1}, step=1, wait=True)


def test_retention_takes_the_sidecars_along(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, experiment="x", parity=10, retention=[KeepLast(1)]) as manager:
        for step in range(4):
            manager.save({"a": np.full(1000, step)}, step=step, wait=True)
        manager.wait()
        repository = manager.workspace.repository
        assert len(packs(repository)) == 1
        assert set(sidecars_in(repository)) == packs(repository)


def test_a_rewritten_pack_keeps_its_parity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_module, "_REWRITE_AT_LEAST", CHUNK)
    repository = new_repository(MemoryStore())
    first = commit(repository, {"w": rows(1, 2, 3, 4)}, 1)
    commit(repository, {"w": rows(1, 5, 6, 7)}, 2, first.manifest)
    protect_all(repository, 25)
    repository.forget(first.key)
    execute_prune(repository, plan_prune(repository))
    assert any("-r1" in name for name in packs(repository))
    assert set(sidecars_in(repository)) == packs(repository)
    assert verify(repository).ok


def test_prune_removes_the_sidecar_of_a_pack_that_is_gone_and_keeps_that_of_one_that_is_lost() -> None:
    repository = new_repository(MemoryStore())
    first, second = commit(repository, {"w": rows(1)}, 1), commit(repository, {"w": rows(2)}, 2)
    protect_all(repository, 25)
    lost, gone = first.packs[0][0], second.packs[0][0]
    repository.store.delete(layout.pack_key(lost))
    repository.store.delete(layout.pack_key(gone))
    repository.store.delete(second.key)
    plan = plan_prune(repository)
    assert plan.sidecars == (gone,)
    execute_prune(repository, plan)
    assert set(sidecars_in(repository)) == {lost}


def test_a_damaged_pack_gets_no_parity() -> None:
    repository = new_repository(MemoryStore())
    name = commit(repository, {"w": rows(1, 2)}, 1).packs[0][0]
    data = bytearray(repository.store.get(layout.pack_key(name)))
    data[-1] ^= 1
    repository.store.put(layout.pack_key(name), bytes(data))
    with pytest.raises(CorruptionError, match="ckpt repair"):
        protect(repository, name, 10)
    assert protect_all(repository, 10).damaged == (name,)
    assert set(sidecars_in(repository)) == set()


def test_a_sidecar_that_could_not_be_written_is_made_up_for_by_the_next_save() -> None:
    def full() -> None:
        raise StoreError("injected", kind="full")

    store = ScriptedStore(MemoryStore())
    with CheckpointManager(store, experiment="x", parity=10) as manager:
        store.once(lambda what, key, when: what == "create" and key.endswith(".parity"), full)
        manager.save({"a": np.arange(200)}, step=2, wait=True)
        manager.wait()
        assert store.done
        assert set(sidecars_in(manager.workspace.repository)) == set()
        manager.save({"a": np.arange(200), "b": np.arange(3)}, step=3, wait=True)
        manager.wait()
        assert set(sidecars_in(manager.workspace.repository)) == packs(manager.workspace.repository)


class ForgetfulStore(MemoryStore):
    """Loses one of the pieces that are written of a sidecar, and says nothing."""

    lost = -1

    def create(self, key: str) -> ObjectWriter:
        writer = super().create(key)
        if key.endswith(".parity"):
            pieces = itertools.count()
            write = writer.write

            def forget(offset: int, data: Any) -> None:
                write(offset, data if next(pieces) != self.lost else bytes(len(data)))

            writer.write = forget  # type: ignore[method-assign]
        return writer


@pytest.mark.parametrize("lost", [0, 2, 8, 9])
def test_a_sidecar_that_did_not_stay_as_it_was_written_is_none(lost: int) -> None:
    store = ForgetfulStore()
    repository = new_repository(store)
    name = commit(repository, {"w": rows(1, 2, 3)}, 1).packs[0][0]
    store.lost = lost
    with pytest.raises(StoreError, match="did not stay"):
        protect(repository, name, 25)
    assert set(sidecars_in(repository)) == set()
    store.lost = -1
    assert protect(repository, name, 25)
    assert verify(repository).ok


@pytest.mark.parametrize("at", [20, 3000, -5])
def test_damage_to_a_sidecar_is_found_and_hurts_nobody(at: int) -> None:
    repository = new_repository(MemoryStore())
    name = commit(repository, {"w": rows(1, 2)}, 1).packs[0][0]
    protect_all(repository, 10)
    key = layout.parity_key(name)
    data = bytearray(repository.store.get(key))
    data[at] ^= 1
    repository.store.put(key, bytes(data))
    report = verify(repository)
    assert [(problem.kind, problem.key) for problem in report.problems] == [("parity", key)]
    assert report.damaged == ()


def test_a_sidecar_in_the_wrong_place_is_found() -> None:
    repository = new_repository(MemoryStore())
    one, two = (commit(repository, {"w": rows(i)}, i).packs[0][0] for i in (1, 2))
    protect_all(repository, 10)
    repository.store.put(layout.parity_key(two), repository.store.get(layout.parity_key(one)))
    (problem,) = verify(repository).problems
    assert "of another pack" in problem.detail
