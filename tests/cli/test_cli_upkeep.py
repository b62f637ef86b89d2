"""`ckpt verify`, `stats`, `doctor` and `reindex`: the state of the store itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, clock
from ckpt_core.catalog import mounts
from ckpt_core.maintenance import surroundings
from cli.calls import Call, damage, ids

# -- verify ---------------------------------------------------------------------------------------


def test_verify_of_a_sound_store(ckpt: Call) -> None:
    data = ckpt("verify", "--json").data
    assert (data["ok"], data["checkpoints"], data["problems"], data["read_data"]) == (True, 10, [], True)
    assert "no damage" in ckpt("verify").out
    assert ckpt("verify", "-q").out == ""
    quick = ckpt("verify", "--headers-only", "--json").data
    assert quick["bytes_read"] < data["bytes_read"]
    assert ckpt("verify", "mnist@latest", "mnist@step=30", "--json").data["checkpoints"] == 1


def test_verify_says_what_damage_hurts(ckpt: Call, store: Path) -> None:
    hurt = ids(ckpt, "mnist")[0]
    pack = damage(store, "mnist")
    answer = ckpt("verify", "--json")
    assert answer.code == 4
    (problem,) = answer.data["problems"]
    assert problem["key"] == pack.relative_to(store).as_posix()
    assert (problem["kind"], problem["checkpoints"]) == ("digest", [hurt])
    assert answer.data["damaged"] == [{"id": hurt, "experiment": "mnist", "step": 10}]
    assert ckpt("verify", "-q").out.split() == [hurt]
    text = ckpt("verify").out
    assert f"hurts mnist step 10 ({hurt})" in text
    assert "1 checkpoint cannot be loaded whole; 9 can." in text
    assert ckpt("verify", "--headers-only").code == 0
    assert ckpt("verify", "mnist@latest").code == 0
    assert ckpt("verify", "mnist@step=10").code == 4
    assert ckpt("show", hurt, "--json").data["verified"]["outcome"] == "damaged"


def test_verify_finds_a_missing_pack_and_a_cut_manifest(ckpt: Call, store: Path) -> None:
    known = ids(ckpt, "mnist")
    sorted(store.glob("packs/mnist/*.safetensors"))[0].unlink()
    manifest = sorted(store.glob("checkpoints/mnist/*.json"))[1]
    manifest.write_bytes(manifest.read_bytes()[:100])
    answer = ckpt("verify", "--headers-only", "--json")
    assert answer.code == 4
    assert {p["kind"] for p in answer.data["problems"]} == {"missing", "manifest"}
    assert [d["id"] for d in answer.data["damaged"]] == known[:2]


# -- stats ----------------------------------------------------------------------------------------


def test_stats_add_up(ckpt: Call, store: Path) -> None:
    data = ckpt("stats", "--json").data
    stored = sum(path.stat().st_size for path in store.glob("packs/*/*"))
    rows = ckpt("ls", "--json").data["checkpoints"]
    assert (data["checkpoints"], data["stored_bytes"], data["dead_bytes"]) == (10, stored, 0)
    assert data["logical_bytes"] == sum(row["logical_bytes"] for row in rows)
    assert data["ratio"] == data["logical_bytes"] / stored
    assert data["packs"] == len(list(store.glob("packs/*/*")))
    assert [(e["name"], e["checkpoints"]) for e in data["experiments"]] == [("digits", 7), ("mnist", 3)]
    assert sum(e["stored_bytes"] for e in data["experiments"]) == stored
    assert (data["tensors"][0]["path"], data["tensors"][0]["bytes"]) == ("model/fc.weight", 512)
    assert len(ckpt("stats", "--largest", "1", "--json").data["tensors"]) == 1
    assert "model/fc.weight" in ckpt("stats").out


def test_stats_of_trash(ckpt: Call, store: Path) -> None:
    ckpt("forget", "--keep-last", "1")
    data = ckpt("stats", "--json").data
    plan = ckpt("prune", "--now", "--dry-run", "--json").data["plan"]
    assert data["trash"] == {"checkpoints": 6, "bytes": plan["frees"]}
    assert data["dead_bytes"] == plan["frees"]
    assert "6 forgotten checkpoints" in ckpt("stats").out
    _orphan(store)
    more = ckpt("stats", "--json").data
    assert more["trash"] == data["trash"]
    assert more["dead_bytes"] > data["dead_bytes"]


def test_stats_follow_rewritten_packs(ckpt: Call, tmp_path: Path) -> None:
    root = tmp_path / "half"
    random = np.random.default_rng(0)
    state: dict[str, Any] = {name: random.standard_normal(300_000) for name in "abcd"}
    with CheckpointManager(root, experiment="x") as manager:
        manager.save(state, step=1, wait=True)
        state |= {name: random.standard_normal(300_000) for name in "abc"}
        manager.save(state, step=2, wait=True)
        manager.forget("step=1")
    ckpt("prune", "--now", at=root)
    data = ckpt("stats", "--json", at=root).data
    assert (data["packs"], data["dead_bytes"]) == (2, 0)
    for pack in root.glob("packs/*/*.safetensors"):
        old(pack, 2)
    assert ckpt("doctor", at=root).code == 0


def test_stats_without_what_cannot_be_read(ckpt: Call, store: Path) -> None:
    ckpt("ls")
    manifest = sorted(store.glob("checkpoints/mnist/*.json"))[-1]
    manifest.write_bytes(manifest.read_bytes()[:100])
    answer = ckpt("stats", "--json")
    assert answer.code == 3
    assert len(answer.data["unreadable"]) == 1
    assert "ckpt verify" in answer.err


# -- doctor ---------------------------------------------------------------------------------------


def findings(ckpt: Call, code: int, at: Path | None = None) -> dict[str, dict[str, Any]]:
    answer = ckpt("doctor", "--json") if at is None else ckpt("doctor", "--json", at=at)
    assert answer.code == code, answer
    assert answer.data["ok"] is (code == 0)
    return {finding["check"]: finding for finding in answer.data["findings"] if finding["level"] != "ok"}


def test_doctor_of_a_sound_store(ckpt: Call) -> None:
    found = findings(ckpt, 0)
    assert found.keys() == {"verified"}
    ckpt("verify")
    assert findings(ckpt, 0) == {}
    answer = ckpt("doctor")
    assert answer.out.endswith("all is well\n")
    for word in ("ok      permissions", "numpy", "SQLite", "10 checkpoints, every manifest intact"):
        assert word in answer.out
    assert ckpt("doctor", "-q").out == ""


def old(path: Path, hours: float) -> Path:
    stamp = path.stat().st_mtime - hours * 3600
    os.utime(path, (stamp, stamp))
    return path


def _orphan(store: Path) -> None:
    pack = next(store.glob("packs/mnist/*.safetensors"))
    orphan = pack.with_name("01ARZ3NDEKTSV4RRFFQ69G5FAV-0-0.safetensors")
    orphan.write_bytes(pack.read_bytes())
    old(orphan, 2)


def _temporary(store: Path) -> None:
    path = store / "packs" / "mnist" / ".tmp-0123456789abcdef"
    path.write_bytes(b"x" * 3000)
    old(path, 30)


def _missing_pack(store: Path) -> None:
    next(store.glob("packs/mnist/*.safetensors")).unlink()


def _short_pack(store: Path) -> None:
    pack = next(store.glob("packs/mnist/*.safetensors"))
    pack.write_bytes(pack.read_bytes()[:-1])


def _cut_manifest(store: Path) -> None:
    manifest = next(store.glob("checkpoints/mnist/*.json"))
    manifest.write_bytes(manifest.read_bytes()[:-1])


def _dangling(store: Path) -> None:
    with CheckpointManager(store, experiment="mnist") as manager:
        manager.workspace.references.set_tag("mnist", "ghost", "01ARZ3NDEKTSV4RRFFQ69G5FAV")


def _cut_reference(store: Path) -> None:
    reference = next(store.glob("refs/mnist/tags/*.json"))
    reference.write_bytes(reference.read_bytes()[:-1])


def _broken_catalog(store: Path) -> None:
    for path in store.glob("catalog.db-*"):
        path.unlink()
    (store / "catalog.db").write_bytes(b"this is no database" * 1000)


def _trash(store: Path) -> None:
    with CheckpointManager(store, experiment="mnist") as manager:
        manager.forget("step=10")


def _stranger(store: Path) -> None:
    (store / "notes.txt").write_text("mine")


def _withdrawn(store: Path) -> None:
    """As a prune leaves it that is killed in between."""
    pack = sorted(store.glob("packs/mnist/*.safetensors"))[0]
    target = store / "trash" / pack.relative_to(store)
    target.parent.mkdir(parents=True)
    pack.rename(target)


def _behind(store: Path) -> None:
    for path in store.glob("catalog.db*"):
        path.unlink()


ILLS: list[tuple[Callable[[Path], None], str, str, str]] = [
    (_orphan, "packs", "warning", "ckpt prune"),
    (_temporary, "temporaries", "warning", "ckpt prune"),
    (_missing_pack, "packs", "error", "ckpt verify"),
    (_short_pack, "packs", "error", "ckpt verify"),
    (_cut_manifest, "manifests", "error", "backup"),
    (_dangling, "references", "warning", "ckpt prune"),
    (_cut_reference, "references", "error", "again"),
    (_broken_catalog, "catalog", "error", "ckpt reindex"),
    (_trash, "trash", "note", "ckpt prune"),
    (_withdrawn, "packs", "warning", "ckpt prune"),
    (_stranger, "strangers", "note", ""),
    (_behind, "catalog", "note", "ckpt reindex"),
]


@pytest.mark.parametrize(
    ("harm", "check", "level", "advice"), ILLS, ids=[ill[0].__name__.strip("_") for ill in ILLS]
)
def test_doctor_finds(
    harm: Callable[[Path], None], check: str, level: str, advice: str, ckpt: Call, store: Path
) -> None:
    harm(store)
    found = findings(ckpt, 0 if level == "note" else 1)
    assert found[check]["level"] == level
    assert advice in found[check]["advice"]
    text = ckpt("doctor").out
    assert f"{level:<8}{check}" in text
    assert "next: " in text


def test_doctor_advice_for_leftovers_helps(ckpt: Call, store: Path) -> None:
    for harm in (_orphan, _temporary, _dangling, _trash):
        harm(store)
    assert ckpt("prune", "--now").code == 0
    assert findings(ckpt, 0).keys() == {"verified"}


def test_an_interrupted_prune_is_finished(ckpt: Call, store: Path) -> None:
    _withdrawn(store)
    assert ckpt("verify").code == 0, "everything loads"
    assert findings(ckpt, 1)["packs"]["level"] == "warning"
    answer = ckpt("prune", "--now")
    assert "put back" in answer.out
    assert len(ckpt("prune", "--now", "--dry-run", "--json").data["plan"]["restores"]) == 0
    assert ckpt("verify").code == 0
    assert ckpt("doctor").code == 0


def test_doctor_looks_at_permissions(ckpt: Call, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode, **options: mode != os.W_OK and real(path, mode, **options)
    )
    found = findings(ckpt, 1)
    assert found["permissions"]["level"] == "error"
    assert "store/packs cannot be written" in found["permissions"]["message"]


def test_doctor_knows_network_file_systems(ckpt: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "is_on_network", lambda path: True)
    assert findings(ckpt, 0)["file-system"]["level"] == "note"


@pytest.mark.parametrize(
    ("free", "level", "code"), [(100, "error", 1), (2000, "warning", 1), (10**9, None, 0)]
)
def test_doctor_looks_at_space(
    free: int, level: str | None, code: int, ckpt: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckpt_core.stores.local.LocalStore.free_bytes", lambda store: free)
    assert findings(ckpt, code).get("space", {}).get("level") == level


def test_doctor_compares_clocks(ckpt: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock.now
    monkeypatch.setattr(clock, "now", lambda: now() + timedelta(hours=1))
    assert findings(ckpt, 1)["clock"]["level"] == "warning"


def test_doctor_remembers_verifications(ckpt: Call, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = damage(store)
    assert ckpt("verify").code == 4
    assert findings(ckpt, 1)["verified"]["level"] == "error"
    damage(store)
    assert pack.exists()
    assert ckpt("verify").code == 0
    assert findings(ckpt, 0) == {}
    now = clock.now
    monkeypatch.setattr(clock, "now", lambda: now() + timedelta(days=40))
    assert "40 days ago" in findings(ckpt, 1)["verified"]["message"]


def test_doctor_survives_a_check_that_fails(ckpt: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckpt_core.errors import StoreError

    def fails(repository: object) -> Any:
        raise StoreError("the disk is on fire", kind="io")
        yield

    monkeypatch.setattr(surroundings, "temporaries", fails)
    found = findings(ckpt, 1)
    assert found["temporaries"]["message"] == "this check failed: the disk is on fire"


# -- reindex --------------------------------------------------------------------------------------


def test_reindex_brings_everything_back(ckpt: Call, store: Path) -> None:
    ckpt("forget", "mnist@step=10")
    before = ckpt("ls", "--json").data, ckpt("tag", "--json").data
    for path in store.glob("catalog.db*"):
        path.unlink()
    data = ckpt("reindex", "--json").data
    assert (data["checkpoints"], data["forgotten"], data["tags"], data["pins"]) == (9, 1, 3, 1)
    assert data["metric_points"] > 0
    assert (ckpt("ls", "--json").data, ckpt("tag", "--json").data) == before
    assert "9 checkpoints, 3 tags, 1 pin" in ckpt("reindex").out
