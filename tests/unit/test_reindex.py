"""Reindex: a lost catalog comes back from the store alone, up to the last commit; small differences too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, clock
from ckpt_core.catalog import Catalog
from ckpt_core.maintenance.marks import MarkReader
from ckpt_core.maintenance.reindex import synchronise
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.repository import References, Repository
from ckpt_core.stores import MemoryStore
from contract.store_case import commit, new_repository
from crash.wrappers import CountingStore, ScriptedStore


def state(step: int) -> dict[str, Any]:
    return {"w": np.full(10, step)}


def fill(store_path: Path) -> None:
    with CheckpointManager(store_path, experiment="a", metric="loss") as manager:
        manager.log({"loss": 1.0, "lr": 0.1}, step=1)
        manager.save(state(1), step=1, metrics={"loss": 1.0}, tags=["first"], wait=True)
        manager.log({"loss": float("nan")}, step=2)
        manager.save(state(2), step=2, metrics={"loss": 0.5}, wait=True)
        manager.pin("latest")
        manager.begin_attempt(manager.resolve("step=1"))
        manager.log({"loss": 0.7}, step=3)
        manager.save(state(3), step=3, metrics={"loss": float("inf")}, tags=["moved"], wait=True)
        manager.save(state(4), step=4, tags=["moved"], wait=True)
        manager.forget("step=3")
    with CheckpointManager(store_path, experiment="b c") as manager:
        manager.save(state(9), step=9, tags=["first"], wait=True)


def told(store_path: Path) -> Any:
    """All that a catalog tells, without a look at the store."""
    with Catalog.open(f"sqlite:///{store_path / 'catalog.db'}") as catalog:
        return {
            "live": catalog.checkpoints(),
            "all": catalog.checkpoints(include_forgotten=True),
            "tags": {name: catalog.tags(name) for name in ("a", "b c")},
            "pins": catalog.pinned("a"),
            "packs": catalog.packs_by_key(),
            "best": catalog.best("a", "loss", "min"),
            "series": {name: repr(catalog.metric_series("a", name)) for name in catalog.metric_names("a")},
        }


@pytest.mark.parametrize("how", ["reindex", "question"])
def test_a_deleted_catalog_comes_back_whole(store_path: Path, how: str) -> None:
    fill(store_path)
    before = told(store_path)
    for path in store_path.glob("catalog.db*"):
        path.unlink()
    workspace = Workspace.open(store_path)
    if how == "reindex":
        report = workspace.reindex()
        assert (report.checkpoints, report.forgotten, report.tags, report.pins) == (4, 1, 3, 1)
        assert report.metric_points == 4
        assert report.unreadable == ()
    else:
        workspace.index.checkpoints("b c")
    workspace.close()
    assert told(store_path) == before
    assert [c.step for c in before["live"]] == [1, 2, 4, 9]
    assert [c.tags for c in before["live"]] == [("first",), (), ("moved",), ("first",)]
    assert len(before["all"]) == 5


def test_reindexing_twice_changes_nothing(store_path: Path) -> None:
    fill(store_path)
    before = told(store_path)
    workspace = Workspace.open(store_path)
    workspace.reindex()
    workspace.reindex()
    audited = [entry.event for entry in workspace.index.catalog().audit_log()]
    workspace.close()
    assert audited.count("reindex") == 2
    assert "save" in audited  # the history stays
    assert told(store_path) == before


def test_what_cannot_be_read_is_named_and_the_rest_comes_back(
    store_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store_path)
    workspace = Workspace.open(store_path)
    hurt = workspace.index.checkpoints("a")[1]
    (store_path / hurt.key).write_bytes(b"{}")
    segment = next(workspace.segments.keys())
    (store_path / segment).write_bytes(b"{}")
    report = workspace.reindex()
    assert report.unreadable == (hurt.key,)
    assert report.checkpoints == 3
    assert report.metric_points == 2
    assert hurt.key in caplog.text
    assert segment in caplog.text
    workspace.close()


def test_a_manifest_in_both_places_is_not_forgotten(store_path: Path) -> None:
    """A power cut in the midst of a move leaves both names."""
    fill(store_path)
    workspace = Workspace.open(store_path)
    live = workspace.index.checkpoints("a")[0]
    trashed = store_path / live.key.replace("checkpoints/", "trash/", 1)
    trashed.write_bytes((store_path / live.key).read_bytes())
    report = workspace.reindex()
    assert (report.checkpoints, report.forgotten) == (4, 1)
    assert live in workspace.index.checkpoints("a")
    workspace.close()


def test_no_writer_waits_while_manifests_are_read() -> None:
    store = ScriptedStore(MemoryStore())
    workspace = Workspace.open(store, create=True)
    commit(workspace.repository, state(1))
    workspace.index.synchronise()
    written = []

    def script(operation: str, key: str, when: str) -> None:
        if operation == "open" and key.startswith("checkpoints/"):
            written.append(workspace.index.catalog().audit("save", "x", "done"))

    store.script = script
    workspace.reindex()
    assert written
    workspace.close()


# -- small differences ----------------------------------------------------------------------------


@pytest.fixture
def repository() -> Repository:
    return new_repository(CountingStore(MemoryStore()))


@pytest.fixture
def catalog() -> Any:
    with Catalog.open("sqlite://") as catalog:
        yield catalog


def bring_in_line(repository: Repository, catalog: Catalog, experiment: str = "digits") -> None:
    synchronise(repository, catalog, experiment, MarkReader(repository), {})


def test_what_is_new_and_what_is_gone(repository: Repository, catalog: Catalog) -> None:
    first = commit(repository, state(1), 1)
    bring_in_line(repository, catalog)
    second = commit(repository, state(2), 2)
    other = commit(repository, state(3), 3, experiment="other")
    repository.forget(first.key)
    bring_in_line(repository, catalog)
    assert catalog.ids() == {second.manifest.id}
    bring_in_line(repository, catalog, "other")
    assert catalog.ids() == {second.manifest.id, other.manifest.id}
    assert catalog.packs(second.manifest.id) == second.packs


def test_nothing_is_read_where_nothing_differs(repository: Repository, catalog: Catalog) -> None:
    for step in range(5):
        commit(repository, state(step), step)
    bring_in_line(repository, catalog)
    assert isinstance(repository.store, CountingStore)
    repository.store.reset()
    bring_in_line(repository, catalog)
    assert repository.store.reads == []


def test_marks_are_set_moved_and_taken_off(repository: Repository, catalog: Catalog) -> None:
    first, second = commit(repository, state(1), 1), commit(repository, state(2), 2)
    references = References(repository.store)
    references.set_tag("digits", "t", first.manifest.id)
    references.pin("digits", first.manifest.id)
    bring_in_line(repository, catalog)
    assert catalog.tags("digits") == {"t": first.manifest.id}
    assert catalog.pinned("digits") == {first.manifest.id}
    references.set_tag("digits", "t", second.manifest.id)
    references.unpin("digits", first.manifest.id)
    references.pin("digits", second.manifest.id)
    bring_in_line(repository, catalog)
    assert catalog.tags("digits") == {"t": second.manifest.id}
    assert catalog.pinned("digits") == {second.manifest.id}
    references.remove_tag("digits", "t")
    references.unpin("digits", second.manifest.id)
    bring_in_line(repository, catalog)
    assert catalog.tags("digits") == {}
    assert catalog.pinned("digits") == set()


def test_marks_of_what_is_not_there_are_passed_over(repository: Repository, catalog: Catalog) -> None:
    only = commit(repository, state(1), 1)
    bring_in_line(repository, catalog)
    references = References(repository.store)
    references.set_tag("digits", "t", "0" * 26)
    references.pin("digits", "0" * 26)
    references.pin("ghost", only.manifest.id)
    references.set_tag("digits", "z", only.manifest.id)
    references.pin("digits", only.manifest.id)
    bring_in_line(repository, catalog)
    assert catalog.tags("digits") == {"z": only.manifest.id}
    assert catalog.pinned("digits") == {only.manifest.id}


# -- marks ----------------------------------------------------------------------------------------


def test_marks_are_read_again_until_their_date_says_enough(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two changes within one tick of the file system's clock leave the same date: a young object is not
    trusted to be what it was."""
    store = repository.store
    assert isinstance(store, CountingStore)
    only = commit(repository, state(1), 1)
    References(store).set_tag("digits", "t", only.manifest.id)
    now = clock.monotonic()
    reader = MarkReader(repository)

    def reads_at(seconds: float) -> int:
        monkeypatch.setattr(clock, "monotonic", lambda: now + seconds)
        store.reset()
        assert reader.read("digits").tags == {"digits": {"t": only.manifest.id}}
        return len(store.reads)

    assert [reads_at(seconds) for seconds in (0, 1, 1.9, 2.1, 2.2, 100)] == [1, 1, 1, 1, 0, 0]


def test_a_mark_that_changed_is_read(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = commit(repository, state(1), 1), commit(repository, state(2), 2)
    references, reader = References(repository.store), MarkReader(repository)
    references.set_tag("digits", "t", first.manifest.id)
    reader.read()
    later = clock.monotonic() + 10
    monkeypatch.setattr(clock, "monotonic", lambda: later)
    reader.read()
    references.set_tag("digits", "t", second.manifest.id)
    assert reader.read().tags == {"digits": {"t": second.manifest.id}}
    references.remove_tag("digits", "t")
    assert reader.read().tags == {}


def test_damaged_marks_are_told_apart(repository: Repository, caplog: pytest.LogCaptureFixture) -> None:
    only = commit(repository, state(1), 1)
    references = References(repository.store)
    references.pin("digits", only.manifest.id)
    references.set_tag("digits", "t", only.manifest.id)
    key = next(info.key for info in repository.store.list("refs") if "/pins/" in info.key)
    repository.store.put(key, b"{}")
    marks = MarkReader(repository).read()
    assert marks.damaged == (key,)
    assert marks.tags == {"digits": {"t": only.manifest.id}}
    assert "tag or pin left out" in caplog.text
