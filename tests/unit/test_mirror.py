"""The mirror: it follows, makes up for outages, is a store of its own, and is read where the first store fails."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, CorruptionError, HookEvent, KeepLast, StoreError, UsageError, clock
from ckpt_core.format.documents import MirrorDocument
from ckpt_core.format.sealed import seal
from ckpt_core.maintenance.mirroring import alone, compare, sync
from ckpt_core.maintenance.repair import repair
from ckpt_core.maintenance.verify import verify
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.repository import Repository, layout
from ckpt_core.stores import LocalStore, MemoryStore, Store
from contract.store_case import CHUNK, new_repository
from crash.wrappers import CountingStore, ScriptedStore

FOLDERS = ("checkpoints", "packs", "refs", "metrics")


def state_of(step: int) -> dict[str, Any]:
    return {"w": np.random.default_rng(step).integers(0, 255, 3 * CHUNK, np.uint8), "step": step}


def contents(store: Store) -> dict[str, bytes]:
    return {info.key: store.get(info.key) for folder in FOLDERS for info in store.list(folder)}


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one["step"] == two["step"] and np.array_equal(one["w"], two["w"])


@pytest.fixture
def first() -> MemoryStore:
    store = MemoryStore()
    new_repository(store)
    return store


@pytest.fixture
def second() -> ScriptedStore:
    return ScriptedStore(MemoryStore())


def out_of_reach(operation: str, key: str, when: str) -> None:
    raise StoreError("the network is down", kind="io")


def fill(first: Store, second: Store | None, steps: range = range(1, 4), **options: Any) -> None:
    with CheckpointManager(first, experiment="x", mirror=second, **options) as manager:
        for step in steps:
            manager.log({"loss": 1 / step}, step=step)
            manager.save(state_of(step), step=step, tags=[f"s{step}"], wait=True)
            manager.wait()
        manager.pin("latest")


# -- it follows -----------------------------------------------------------------------------------


def test_every_save_is_there_when_its_manager_goes_on(first: MemoryStore, second: ScriptedStore) -> None:
    with CheckpointManager(first, experiment="x", mirror=second) as manager:
        for step in (1, 2, 3):
            manager.log({"loss": 1 / step}, step=step)
            manager.save(state_of(step), step=step, tags=[f"s{step}"], wait=True)
            manager.wait()
            assert contents(second) == contents(first), step
        manager.tag("latest", "good")
        manager.pin("latest")
    assert contents(second) == contents(first)
    assert second.get("store.json") == first.get("store.json")


def test_it_is_a_store_of_its_own(first: MemoryStore, second: ScriptedStore) -> None:
    fill(first, second)
    with CheckpointManager(second.inner, experiment="x") as manager:
        assert [c.step for c in manager.checkpoints()] == [1, 2, 3]
        assert same(manager.load("s2"), state_of(2))
        assert manager.verify().ok


def test_only_what_is_missing_travels(first: MemoryStore, second: ScriptedStore) -> None:
    counting = CountingStore(second)
    with CheckpointManager(first, experiment="x", mirror=counting) as manager:
        manager.save(state_of(1), step=1, wait=True)
        manager.wait()
        counting.reset()
        manager.save(state_of(1), step=2, wait=True)  # nothing new
        manager.wait()
        assert counting.operations["commit"] == 0
        assert counting.operations["create"] == 0
        assert counting.operations["put"] == 1


def test_the_store_remembers_its_mirror(tmp_path: Path) -> None:
    fill(LocalStore(tmp_path / "one"), LocalStore(tmp_path / "two"), range(1, 2))
    with CheckpointManager(tmp_path / "one", experiment="x") as manager:
        assert manager.workspace.mirror is not None
        manager.save(state_of(2), step=2, wait=True)
    assert contents(LocalStore(tmp_path / "two")) == contents(LocalStore(tmp_path / "one"))


def test_parity_travels_too(first: MemoryStore, second: ScriptedStore) -> None:
    pytest.importorskip("zfec")
    fill(first, second, parity=10)
    assert contents(second) == contents(first)
    assert sum(key.endswith(".parity") for key in contents(second)) == 3


@pytest.mark.parametrize("remembered", [False, True])
def test_a_place_of_another_store_is_refused(tmp_path: Path, remembered: bool) -> None:
    fill(LocalStore(tmp_path / "one"), LocalStore(tmp_path / "mirror"), range(1, 2))
    if remembered:  # somebody put another store into its place
        shutil.rmtree(tmp_path / "mirror")
        fill(LocalStore(tmp_path / "mirror"), None, range(1, 2))
        before = contents(LocalStore(tmp_path / "mirror"))
        fill(LocalStore(tmp_path / "one"), None, range(2, 3))
        assert contents(LocalStore(tmp_path / "mirror")) == before
    else:
        fill(LocalStore(tmp_path / "two"), None, range(1, 2))
        with pytest.raises(UsageError, match="no mirror of"):
            CheckpointManager(tmp_path / "two", experiment="x", mirror=tmp_path / "mirror")
    with pytest.raises(UsageError, match="its own mirror"):
        CheckpointManager(tmp_path / "one", experiment="x", mirror=tmp_path / "one")


def test_a_remembered_mirror_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    fill(LocalStore(tmp_path / "one"), LocalStore(tmp_path / "two"), range(1, 2))
    shutil.rmtree(tmp_path / "two")
    fill(LocalStore(tmp_path / "one"), None, range(2, 3))
    assert not (tmp_path / "two").exists()
    fill(LocalStore(tmp_path / "one"), LocalStore(tmp_path / "two"), range(3, 4))
    assert contents(LocalStore(tmp_path / "two")) == contents(LocalStore(tmp_path / "one"))


@pytest.mark.parametrize(
    "url",
    [
        "nowhere://x",
        "x",
        "../two",
        "file:relative",
        "file:///nonexistent/place",
        "memory://",
        "\x1b[2J",
        "s3://bucket",
        "x" * 4000,
    ],
)
def test_a_store_that_says_nonsense_of_its_mirror(tmp_path: Path, url: str) -> None:
    fill(LocalStore(tmp_path / "one"), None, range(1, 2))
    document = MirrorDocument(url=url, created_at=clock.to_text(clock.now()))
    LocalStore(tmp_path / "one").put(layout.MIRROR_DOCUMENT, seal(document))
    before = sorted(path.name for path in tmp_path.iterdir())
    fill(LocalStore(tmp_path / "one"), None, range(2, 4), retention=[KeepLast(2)])
    with CheckpointManager(tmp_path / "one", experiment="x") as manager:
        assert same(manager.load("latest"), state_of(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("data", [b"", b"{}", b"not a document", b'{"format":1,"url":"file:///"}'])
def test_a_damaged_mirror_document_is_no_obstacle(tmp_path: Path, data: bytes) -> None:
    fill(LocalStore(tmp_path / "one"), LocalStore(tmp_path / "two"), range(1, 2))
    LocalStore(tmp_path / "one").put(layout.MIRROR_DOCUMENT, data)
    fill(LocalStore(tmp_path / "one"), None, range(2, 3))
    with CheckpointManager(tmp_path / "one", experiment="x") as manager:
        assert any(problem.kind == "mirror" for problem in manager.verify().problems)
        assert manager.repair().quarantined == (layout.quarantine_key(layout.MIRROR_DOCUMENT),)
        assert manager.verify().ok


@pytest.mark.parametrize("key", ["packs", "store.json", "trash/x"])
def test_a_note_that_names_what_no_mirror_loses_is_passed_over(
    first: MemoryStore, second: ScriptedStore, key: str
) -> None:
    fill(first, second)
    before = contents(second)
    name = next(key for key in before if key.startswith("packs/")) if key == "packs" else key
    first._objects[f"trash/mirror/{name}"] = (b"", 0.0)
    sync(Repository.open(first), Repository.open(second))
    assert contents(second) == before
    assert second.exists("store.json")


# -- what is deleted ------------------------------------------------------------------------------


def test_retention_follows(first: MemoryStore, second: ScriptedStore) -> None:
    fill(first, second, range(1, 8), retention=[KeepLast(2)])
    assert contents(second) == contents(first)
    assert len([key for key in contents(second) if key.startswith("packs/")]) == 2


def test_forget_and_untag_follow(first: MemoryStore, second: ScriptedStore) -> None:
    fill(first, second)
    with CheckpointManager(first, experiment="x", mirror=second) as manager:
        manager.forget("step=1")
        manager.untag("s2")
        manager.unpin("latest")
        manager.prune()
    kept = {key: value for key, value in contents(first).items() if not key.startswith("refs/x/tags/s1")}
    assert {key: value for key, value in contents(second).items() if key in kept} == kept
    assert len([key for key in contents(second) if key.startswith("checkpoints/")]) == 2


def test_what_is_lost_in_the_store_is_not_deleted_there(first: MemoryStore, second: ScriptedStore) -> None:
    fill(first, second)
    before = contents(second)
    for key in contents(first):
        first.delete(key)
    with CheckpointManager(first, experiment="x", mirror=second) as manager:
        manager.save(state_of(9), step=9, wait=True)
    after = contents(second)
    assert {key: after[key] for key in before} == before


def test_deletions_in_an_outage_are_made_up_for(first: MemoryStore, second: ScriptedStore) -> None:
    fill(first, second)
    second.script = out_of_reach
    with CheckpointManager(first, experiment="x", mirror=second, retention=[KeepLast(1)]) as manager:
        manager.unpin("latest")
        for step in (4, 5, 6):
            manager.save(state_of(step), step=step, wait=True)
            manager.wait()
        assert len(manager.checkpoints()) < 6
    second.script = None
    with CheckpointManager(first, experiment="x", mirror=second) as manager:
        manager.save(state_of(7), step=7, wait=True)
        manager.wait()
        assert manager.workspace.mirror is not None
        status = manager.workspace.mirror.status()
        assert (status.behind, status.alone) == (False, ())
    there = contents(second)
    assert {key for key in there if key.startswith(("checkpoints/", "packs/"))} == {
        key for key in contents(first) if key.startswith(("checkpoints/", "packs/"))
    }
    assert list(first.list("trash/mirror")) == []


# -- outages --------------------------------------------------------------------------------------


def test_an_outage_fails_no_save_and_is_said_once(
    first: MemoryStore, second: ScriptedStore, caplog: pytest.LogCaptureFixture
) -> None:
    with CheckpointManager(first, experiment="x", mirror=second) as manager:
        manager.save(state_of(1), step=1, wait=True)
        manager.wait()
        second.script = out_of_reach
        with caplog.at_level(logging.WARNING, "ckpt_core.mirror"):
            for step in (2, 3, 4):
                manager.save(state_of(step), step=step, wait=True)
                manager.wait()
            assert len([r for r in caplog.records if "out of reach" in r.message]) == 1
            second.script = None
            manager.save(state_of(5), step=5, wait=True)
            manager.wait()
            assert [r.message for r in caplog.records if "is back" in r.message]
        assert not manager._saver.unfinished
    assert contents(second) == contents(first)


def test_killed_at_every_step_of_a_sync_it_is_whole_and_the_next_one_ends_it(first: MemoryStore) -> None:
    fill(first, None)
    repository = Repository.open(first)
    at = 0
    while True:
        at += 1
        store = ScriptedStore(MemoryStore())
        store.inner.put("store.json", first.get("store.json"))
        mirror = Repository.open(store)
        count = 0

        def script(operation: str, key: str, when: str, last: int = at) -> None:
            nonlocal count
            if operation.split()[0] in ("put", "commit", "move", "delete", "write"):
                count += 1
                if count == last:
                    raise KeyboardInterrupt

        store.script = script
        try:
            sync(repository, mirror)
            break
        except KeyboardInterrupt:
            store.script = None
        assert verify(Repository.open(store)).ok, at
        sync(repository, mirror)
        assert contents(store) == contents(first), at
    assert at > 15


def test_a_folder_removed_and_made_read_only_and_back(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with CheckpointManager(one, experiment="x", mirror=two) as manager:
        manager.save(state_of(1), step=1, wait=True)
        manager.wait()
        two.rename(tmp_path / "away")
        two.write_text("a file where the disk was mounted")
        manager.save(state_of(2), step=2, wait=True)
        manager.wait()
        two.unlink()
        (tmp_path / "away").rename(two)
        manager.save(state_of(3), step=3, wait=True)
        manager.wait()
        assert contents(LocalStore(two)) == contents(LocalStore(one))


def test_damage_does_not_travel(first: MemoryStore, second: ScriptedStore) -> None:
    fill(first, None)
    key = next(info.key for info in first.list("packs"))
    data = bytearray(first.get(key))
    data[-1] ^= 1
    first.put(key, bytes(data))
    with CheckpointManager(first, experiment="x", mirror=second) as manager:
        assert manager.workspace.mirror is not None
        synced = manager.workspace.mirror.catch_up()
        assert synced is not None
        assert key in synced.damaged
        assert not second.exists(key)
    assert verify(Repository.open(second)).ok


def test_a_pack_of_another_size_there_is_replaced(first: MemoryStore, second: ScriptedStore) -> None:
    fill(first, second)
    key = next(info.key for info in second.list("packs"))
    second.put(key, second.get(key)[:5000])
    sync(Repository.open(first), Repository.open(second))
    assert contents(second) == contents(first)
    assert list(second.list("quarantine")) == []


# -- read in need ---------------------------------------------------------------------------------


def flip(store: Store, key: str, at: int) -> None:
    data = bytearray(store.get(key))
    data[at] ^= 1
    store.put(key, bytes(data))


@pytest.mark.parametrize(
    ("folder", "how"),
    [(folder, how) for folder in ("packs", "checkpoints") for how in ("chunk", "header", "short")]
    + [("packs", "lost")],  # a manifest that is lost is found by repair
)
def test_load_and_open_give_what_was_saved_and_say_so(
    first: MemoryStore, second: ScriptedStore, caplog: pytest.LogCaptureFixture, folder: str, how: str
) -> None:
    fill(first, second)
    with CheckpointManager(first, experiment="x", mirror=second) as manager:
        told: list[Any] = []
        manager.hooks.register_hook(told.append, HookEvent.CORRUPTION_FOUND)
        latest = manager.resolve("latest")
        key = latest.key if folder == "checkpoints" else f"packs/x/{latest.id}-0-0.safetensors"
        if how == "lost":
            first.delete(key)
        elif how == "short":
            first.put(key, first.get(key)[:100])
        else:
            flip(first, key, {"chunk": -300, "header": 60}[how])
        assert same(manager.load("latest"), state_of(3))
        assert manager.loaded is not None
        assert manager.loaded.id == latest.id
        with manager.open(latest.id) as reader:
            assert np.array_equal(reader["w"][10:9000], state_of(3)["w"][10:9000])
        assert "READ FROM THE MIRROR" in caplog.text
        assert told
        assert told[0].data["mirror"] == second.url
        report = manager.verify()
        assert report.damaged == (latest.id,)  # verify tells of the store itself
    with CheckpointManager(first, experiment="x", mirror=second) as manager:  # the catalog has never seen it
        assert same(manager.load(latest.id), state_of(3))


def test_damage_in_both_is_damage(first: MemoryStore, second: ScriptedStore) -> None:
    fill(first, second)
    with CheckpointManager(first, experiment="x", mirror=second) as manager:
        latest = manager.resolve("latest")
        key = f"packs/x/{latest.id}-0-0.safetensors"
        flip(first, key, -300)
        flip(second, key, -301)
        with pytest.raises(CorruptionError) as caught:
            manager.load(latest.id)
        assert "mirror" in str(caught.value.__notes__)
        assert same(manager.load("latest"), state_of(2))


def test_a_new_store_begins_as_its_mirror(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    fill(LocalStore(one), LocalStore(two))
    before = contents(LocalStore(one))
    shutil.rmtree(one)  # another machine, or another disk
    with CheckpointManager(one, experiment="x", mirror=two) as manager:
        assert same(manager.load("latest"), state_of(3))
        manager.save(state_of(4), step=4, wait=True)
    with Workspace_open(one) as workspace:
        assert workspace.mirror is not None
        report = repair(workspace.repository, workspace.mirror.open())
        assert report.ok
    now = contents(LocalStore(one))
    assert {key: now[key] for key in before} == before


class Workspace_open:  # noqa: N801
    def __init__(self, root: Path) -> None:
        self._workspace = Workspace.open(root)

    def __enter__(self) -> Workspace:
        return self._workspace

    def __exit__(self, *error: object) -> None:
        self._workspace.close()


def test_lost_documents_come_back_by_repair(first: MemoryStore, second: ScriptedStore) -> None:
    fill(first, second)
    before = contents(first)
    for key in list(before):
        first.delete(key)
    one, two = Repository.open(first), Repository.open(second)
    lost = alone(one, two)
    report = repair(one, two, restore=lost)
    assert report.ok
    assert len(report.returned) == 3
    assert contents(first) == before
    status = compare(one, two)
    assert not status.behind
    assert status.alone == ()


def test_the_mirror_heals_from_the_store(first: MemoryStore, second: ScriptedStore) -> None:
    fill(first, second)
    for key in list(contents(second)):
        flip(second, key, -30)
    report = repair(Repository.open(second), Repository.open(first))
    assert report.ok
    assert contents(second) == contents(first)
    assert layout.MIRROR_DOCUMENT not in contents(second)
