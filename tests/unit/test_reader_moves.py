"""Reading while a prune moves packs about: what is read is whole, or the checkpoint is said to be forgotten."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, KeepLast
from ckpt_core.errors import CorruptionError, NotFoundError, ObjectNotFoundError
from ckpt_core.maintenance import prune as prune_module
from ckpt_core.maintenance.deletion import execute_prune
from ckpt_core.maintenance.prune import plan_prune
from ckpt_core.repository import Committed, Repository, layout
from ckpt_core.stores import MemoryStore
from contract.store_case import CHUNK, commit, load, new_repository
from crash.wrappers import ScriptedStore

NO_CATALOG = "sqlite:////proc/nowhere/catalog.db"


def rows(*values: int) -> np.ndarray[Any, Any]:
    return np.repeat(np.array(values, np.uint8), CHUNK)


@pytest.fixture
def store() -> ScriptedStore:
    return ScriptedStore(MemoryStore())


@pytest.fixture
def repository(store: ScriptedStore) -> Repository:
    return new_repository(store)


@pytest.fixture
def committed(repository: Repository) -> Committed:
    return commit(repository, {"w": rows(*range(10))}, 1)


def values(repository: Repository, committed: Committed) -> list[int]:
    return list(load(repository, committed.key)["w"][::CHUNK])


def prune(store: MemoryStore) -> None:
    repository = Repository.open(store)
    execute_prune(repository, plan_prune(repository))


def test_a_pack_that_is_out_of_circulation_is_read_there(
    repository: Repository, committed: Committed
) -> None:
    name = committed.packs[0][0]
    repository.store.move(layout.pack_key(name), layout.withdrawn_key(name))
    assert values(repository, committed) == list(range(10))


def test_a_pack_that_is_put_back_between_two_looks_is_found(
    store: ScriptedStore, repository: Repository, committed: Committed
) -> None:
    name = committed.packs[0][0]
    key, withdrawn = layout.pack_key(name), layout.withdrawn_key(name)
    store.move(key, withdrawn)
    store.once(
        lambda operation, where, when: (operation, where) == ("open", withdrawn),
        lambda: store.inner.move(withdrawn, key),
    )
    assert values(repository, committed) == list(range(10))
    assert store.done


def test_a_reader_that_followed_an_old_forwarding_looks_again(
    monkeypatch: pytest.MonkeyPatch, store: ScriptedStore, repository: Repository, committed: Committed
) -> None:
    """It is rewritten twice, and the forwarding that the reader has read leads to what is gone again."""
    monkeypatch.setattr(prune_module, "_REWRITE_AT_LEAST", CHUNK)
    fewer = commit(repository, {"w": rows(1, 2, 3, 4)}, 2, committed.manifest)
    fewest = commit(repository, {"w": rows(4)}, 3, committed.manifest)
    repository.forget(committed.key)
    prune(store.inner)
    reader = repository.reader(fewest.manifest)
    assert reader._forward(committed.packs[0][0])
    repository.forget(fewer.key)
    prune(store.inner)
    prune(store.inner)  # takes the forwarding of what was in between away
    assert reader.read_range(0, 0, CHUNK).tolist() == rows(4).tolist()
    reader.close()


def test_a_pack_that_goes_while_it_is_open_is_read_at_its_new_place(
    monkeypatch: pytest.MonkeyPatch, store: ScriptedStore, repository: Repository, committed: Committed
) -> None:
    """In an object store nothing that is open outlives its deletion."""
    monkeypatch.setattr(prune_module, "_REWRITE_AT_LEAST", CHUNK)
    fewest = commit(repository, {"w": rows(4, 5)}, 3, committed.manifest)
    reader = repository.reader(fewest.manifest)
    assert reader.read_range(0, 0, CHUNK).tolist() == rows(4).tolist()
    repository.forget(committed.key)
    prune(store.inner)
    gone = layout.pack_key(committed.packs[0][0])

    def refuse(operation: str, key: str, when: str) -> None:
        if operation.startswith("read") and key == gone:
            raise ObjectNotFoundError("deleted", key=key)

    store.script = refuse
    assert reader.read_range(0, CHUNK, 2 * CHUNK).tolist() == rows(5).tolist()
    reader.close()


def test_a_checkpoint_that_is_forgotten_while_it_is_read_is_not_called_damaged(
    store: ScriptedStore, repository: Repository, committed: Committed
) -> None:
    def others() -> None:
        Repository.open(store.inner).forget(committed.key)
        prune(store.inner)

    store.once(lambda operation, key, when: operation == "open" and key.startswith("packs/"), others)
    with pytest.raises(NotFoundError, match="was forgotten") as caught:
        load(repository, committed.key)
    assert caught.value.kind == "forgotten"
    assert store.done


def test_a_pack_that_is_really_missing_is_damage(repository: Repository, committed: Committed) -> None:
    repository.store.delete(layout.pack_key(committed.packs[0][0]))
    with pytest.raises(CorruptionError, match="is missing"):
        load(repository, committed.key)


@pytest.mark.parametrize("times", [1, 3])
def test_a_load_of_the_latest_goes_on_to_what_retention_left(times: int, store: ScriptedStore) -> None:
    """As soon as the reader has chosen, a newer one takes the place of all that there is."""
    new_repository(store)
    with (
        CheckpointManager(store.inner, experiment="x", catalog=NO_CATALOG, retention=[KeepLast(1)]) as writer,
        CheckpointManager(store, experiment="x", catalog=NO_CATALOG) as reader,
    ):
        writer.save({"w": rows(0)}, step=0, wait=True)
        left = list(range(1, times + 1))

        def script(operation: str, key: str, when: str) -> None:
            if operation == "open" and key.startswith("packs/") and left:
                step = left.pop(0)
                writer.save({"w": rows(step)}, step=step, wait=True)

        store.script = script
        assert reader.load()["w"][0] == times
        assert reader.loaded is not None
        assert reader.loaded.step == times
        with pytest.raises(NotFoundError):
            reader.load("step=0")
