"""What attempts and tags of experiments are in a store: sealed objects that every tool knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckpt_core import CheckpointManager, CorruptionError, FormatError, Workspace
from ckpt_core.format.sealed import seal
from ckpt_core.maintenance.doctor import examine
from ckpt_core.repository import ExperimentRecords, layout
from ckpt_core.stores import LocalStore
from ckpt_core.tracker.experiments import ExperimentTracker
from crash.wrappers import CountingStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    with CheckpointManager(root, experiment="a b", config={"lr": 0.1}, mirror=tmp_path / "mirror") as manager:
        manager.save({"w": 1}, step=1, wait=True)
        manager.tracker.tag("a b", "ö")
        manager.tracker.tag("a b", "gone")
    return root


def keys(root: Path) -> list[str]:
    return list(ExperimentRecords(LocalStore(root)).keys())


def tags(root: Path) -> tuple[str, ...]:
    return ExperimentRecords(LocalStore(root)).all()[0].tags


def test_keys_are_made_and_taken_apart(root: Path) -> None:
    found = keys(root)
    assert len(found) == 4
    attempts = [place for key in found if (place := layout.parse_attempt_key(key)) is not None]
    assert sorted(place.word is None for place in attempts) == [False, True]
    assert {place.id for place in attempts} == {attempts[0].id}
    tagged = [place.name for key in found if (place := layout.parse_experiment_tag_key(key)) is not None]
    assert tagged == ["%C3%B6", "gone"]


@pytest.mark.parametrize(
    "key",
    ["experiments/a/attempts/1-01M8AE9AJBXCJQQVCF185B4MGX.json", "experiments/a/attempts/000001-x.json",
     "experiments/a/attempts/000001-01M8AE9AJBXCJQQVCF185B4MGX", "experiments/a/000001-01M8AE9AJBXCJQQVCF185B4MGX.json",
     "refs/a/attempts/000001-01M8AE9AJBXCJQQVCF185B4MGX.json", "experiments/a/others/x.json"],
)  # fmt: skip
def test_other_keys_are_none(key: str) -> None:
    assert layout.parse_attempt_key(key) is None
    assert layout.parse_experiment_tag_key(key) is None


def test_the_mirror_follows(root: Path, tmp_path: Path) -> None:
    assert keys(tmp_path / "mirror") == keys(root)
    with CheckpointManager(root, experiment="a b") as manager:
        manager.tracker.untag("a b", "gone")
    assert tags(tmp_path / "mirror") == ("ö",)
    (tmp_path / "mirror").rename(tmp_path / "away")
    (tmp_path / "mirror").write_text("out of reach")
    with CheckpointManager(root, experiment="a b") as manager:
        manager.tracker.untag("a b", "ö")
    (tmp_path / "mirror").unlink()
    (tmp_path / "away").rename(tmp_path / "mirror")
    space = Workspace.open(root)
    assert space.mirror is not None
    space.mirror.sync()
    space.close()
    assert keys(tmp_path / "mirror") == keys(root)
    assert tags(root) == ()


def test_damage_is_found_and_healed(root: Path) -> None:
    hurt = keys(root)
    for key in hurt:
        (root / key).write_bytes((root / key).read_bytes()[:-30])
    lost = hurt.pop()
    (root / lost).unlink()
    space = Workspace.open(root)
    found = {problem.key: problem.kind for problem in space.verify().problems}
    assert found == dict.fromkeys(hurt, "experiment")
    assert {mended.key for mended in space.repair().mended} == {*hurt, lost}
    assert space.verify().ok
    space.close()


@pytest.mark.parametrize("catalog", [True, False])
def test_damage_is_told_once_and_what_was_healed_is_read(
    root: Path, caplog: pytest.LogCaptureFixture, catalog: bool
) -> None:
    store = CountingStore(LocalStore(root))
    if catalog:
        (root / "catalog.db").unlink()
    whole = {key: (root / key).read_bytes() for key in keys(root)}
    for key in whole:
        (root / key).write_bytes(whole[key][:-30])
    place = f"sqlite:///{root}/catalog.db" if catalog else f"sqlite:///{root}/none/catalog.db"
    with ExperimentTracker(store, catalog=place) as tracker:
        assert (tracker.experiment("a b").status, tracker.experiment("a b").tags) == ("unknown", ())
        assert "left out: " in caplog.text
        caplog.clear()
        assert tracker.experiment("a b").status == "unknown"
        store.reset()
        assert tracker.experiment("a b").status == "unknown"
        assert not store.objects_read() & whole.keys()
        assert "left out: " not in caplog.text
        for key in whole:
            (root / key).write_bytes(whole[key])
        found = tracker.experiment("a b")
        assert (found.status, found.tags, found.config) == ("finished", ("gone", "ö"), {"lr": 0.1})


def test_what_cannot_be_healed_is_out_of_the_way(root: Path, tmp_path: Path) -> None:
    Workspace.open(root).unset_mirror()
    key = keys(root)[0]
    (root / key).write_bytes(b"{}")
    space = Workspace.open(root)
    assert not space.repair().mended
    assert (root / "quarantine" / key).exists()
    assert space.verify().ok
    space.close()


def test_a_prune_leaves_them_and_the_doctor_knows_them(root: Path) -> None:
    before = keys(root)
    space = Workspace.open(root)
    space.prune(space.plan_prune(now=True))
    findings = examine(space.repository, space.references, space.index.catalog)
    space.close()
    assert keys(root) == before
    assert not [finding for finding in findings if finding.check == "strangers"]


def test_a_lost_store_comes_back_from_its_mirror(root: Path, tmp_path: Path) -> None:
    before = keys(root)
    root.rename(tmp_path / "lost")
    with CheckpointManager(root, experiment="a b", mirror=tmp_path / "mirror") as manager:
        found = manager.tracker.experiment("a b")
    assert keys(root) == before
    assert (found.status, found.config, found.tags) == ("finished", {"lr": 0.1}, ("gone", "ö"))


def test_a_document_under_another_name_is_damage(root: Path) -> None:
    records = ExperimentRecords(LocalStore(root))
    for key in keys(root):
        moved = key.replace("a%20b", "other")
        (root / moved).parent.mkdir(parents=True, exist_ok=True)
        (root / key).rename(root / moved)
        with pytest.raises(CorruptionError, match="moved or copied"):
            records.read(moved)
    with ExperimentTracker(root) as tracker:
        assert tracker.experiment("a b").status == "finished"  # as the catalog still knows it


def test_a_later_format_is_left_alone(root: Path) -> None:
    key = next(key for key in keys(root) if (place := layout.parse_attempt_key(key)) and place.word is None)
    (root / key).write_bytes(seal({"format": 9, "all": "new"}))
    with pytest.raises(FormatError, match="upgrade"):
        ExperimentRecords(LocalStore(root)).read(key)
    assert ExperimentRecords(LocalStore(root)).all()[0].attempts == ()


def test_a_word_that_this_version_does_not_know_is_unknown(root: Path) -> None:
    records = ExperimentRecords(LocalStore(root))
    (facts,) = records.all()[0].attempts
    records.say(facts, "paused", "by a later version")
    with ExperimentTracker(root) as tracker:
        assert tracker.experiment("a b").status == "unknown"


@pytest.mark.parametrize("member", ["config", "environment"])
def test_a_document_nested_without_end_is_damage(root: Path, member: str) -> None:
    key = next(key for key in keys(root) if (place := layout.parse_attempt_key(key)) and place.word is None)
    records = ExperimentRecords(LocalStore(root))
    document = json.loads((root / key).read_bytes())
    del document["sha256"]
    nested: dict[str, object] = {}
    for _ in range(200):
        nested = {"a": nested}
    (root / key).write_bytes(seal(document | {member: nested}))
    with pytest.raises(CorruptionError, match="nested too deep"):
        records.read(key)


def test_figures_of_another_shape_are_left_out(root: Path) -> None:
    records = ExperimentRecords(LocalStore(root))
    for odd in ({"latencies": 3}, {"latencies": {"save": 1}, "bytes": {}, "cache": {}, "queues": {}}):
        (facts,) = records.all()[0].attempts
        records.say(facts, "finished", "", odd)
        with ExperimentTracker(root) as tracker:
            assert tracker.performance() == []
