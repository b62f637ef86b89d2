"""`ckpt parity`, `repair`, `scrub`, `mirror`, and `verify --read-data`: what they do, and what they say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ckpt_core import CheckpointManager
from cli.calls import Call, damage, ids

pytest.importorskip("zfec")


def files(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_file() and "catalog" not in path.name)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


# -- parity ---------------------------------------------------------------------------------------


def test_parity_for_what_is_there(ckpt: Call, store: Path) -> None:
    data = ckpt("parity", "--json").data
    packs, sidecars = list(store.glob("packs/*/*.safetensors")), list(store.glob("packs/*/*.parity"))
    assert data == {
        "percent": 10, "packs": len(packs), "bytes": sum(path.stat().st_size for path in sidecars), "damaged": [],
    }  # fmt: skip
    assert len(sidecars) == len(packs)
    assert ckpt("parity").out == "parity of 0 packs written, 0 B\n"
    assert ckpt("stats", "--json").data["parity_bytes"] == data["bytes"]
    assert "parity" in ckpt("stats").out
    assert ckpt("verify").code == 0


def test_a_damaged_pack_is_told(ckpt: Call, store: Path) -> None:
    pack = damage(store)
    answer = ckpt("parity", "-q")
    assert answer.code == 4
    assert answer.out.strip() == pack.relative_to(store / "packs").as_posix()
    assert "ckpt repair" in ckpt("parity").out


# -- repair ---------------------------------------------------------------------------------------


def test_repair_of_a_sound_store(ckpt: Call, store: Path) -> None:
    before = files(store)
    answer = ckpt("repair")
    assert (answer.code, "nothing to repair" in answer.out) == (0, True)
    assert files(store) == before


def test_repair_heals_and_says_from_what(ckpt: Call, store: Path) -> None:
    ckpt("parity")
    before = files(store)
    pack = damage(store, "mnist", 4200)
    key = pack.relative_to(store).as_posix()
    planned = ckpt("repair", "-n", "--json")
    assert planned.code == 0
    assert planned.data["healed"] == [{"key": key, "from": ["parity"]}]
    assert files(store) != before
    answer = ckpt("repair")
    assert answer.code == 0
    assert key in answer.out
    assert "from parity" in answer.out
    assert files(store) == before
    assert ckpt("verify").code == 0


def destroy(store: Path, ckpt: Call) -> str:
    """Half of the newest pack of mnist; returns the id of the checkpoint that this hurts."""
    (hurt,) = ids(ckpt, "mnist", "--last", "1")
    pack = next(store.glob(f"packs/mnist/{hurt}-*.safetensors"))
    data = pack.read_bytes()
    pack.write_bytes(data[:4096] + bytes(len(data) - 4096))
    return hurt


def test_what_is_lost_is_named_and_can_be_given_up(ckpt: Call, store: Path) -> None:
    hurt = destroy(store, ckpt)
    answer = ckpt("repair")
    assert answer.code == 4
    assert f"lost: mnist step 30 ({hurt})" in answer.out
    assert "--discard" in answer.out
    assert hurt not in ids(ckpt)
    assert ckpt("verify").code == 0
    assert ckpt("repair", "-q").out.split() == [hurt]
    assert {f["check"] for f in ckpt("doctor", "--json").data["findings"] if f["level"] == "warning"} == {
        "quarantine"
    }
    assert ckpt("repair", "--discard", "-n").code == 2
    done = ckpt("repair", "--discard", "--json")
    assert (done.code, done.data["checkpoints"]) == (0, [hurt])
    assert ckpt("repair").code == 0
    assert "nothing is in quarantine" in ckpt("repair", "--discard").out


def test_what_was_lost_comes_back_from_a_copy(ckpt: Call, store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "copy")
    before = files(store)
    hurt = destroy(store, ckpt)
    ckpt("repair")
    answer = ckpt("repair", "--mirror", tmp_path / "copy")
    assert answer.code == 0
    assert f"whole again: mnist step 30 ({hurt})" in answer.out
    assert hurt in ids(ckpt)
    assert files(store) == before


def test_the_stores_own_document_and_a_tag(ckpt: Call, store: Path) -> None:
    before = files(store)
    tag = next(store.glob("refs/*/tags/*.json"))
    for path in (store / "store.json", tag):
        data = bytearray(path.read_bytes())
        data[30] ^= 1
        path.write_bytes(data)
    assert ckpt("ls").code == 4
    answer = ckpt("repair", "--json")
    assert answer.code == 0
    assert answer.data["healed"] == [
        {"key": "store.json", "from": ["bit"]},
        {"key": tag.relative_to(store).as_posix(), "from": ["bit"]},
    ]
    assert files(store) == before


def test_a_copy_of_another_store_heals_nothing(ckpt: Call, store: Path, tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "other", experiment="x") as manager:
        manager.save({"a": 1}, step=1, wait=True)
    answer = ckpt("repair", "--mirror", tmp_path / "other")
    assert (answer.code, "no mirror of" in answer.err) == (2, True)


# -- scrub and shares -----------------------------------------------------------------------------


def test_a_scrub_goes_on_where_the_last_one_ended(ckpt: Call, store: Path) -> None:
    packs = len(list(store.glob("packs/*/*.safetensors")))
    seen = 0
    for _ in range(packs):
        data = ckpt("scrub", "--limit", "1", "--json").data
        assert data["packs"] == 1
        seen += 1
    assert seen == packs
    damage(store, "digits")
    found = [ckpt("scrub", "--limit", "1", "--json") for _ in range(packs)]
    assert sum(answer.code == 4 for answer in found) == 1
    answer = ckpt("scrub")
    assert (answer.code, "damaged (digest)" in answer.out, "ckpt repair" in answer.out) == (4, True, True)
    assert len(ckpt("scrub", "-q").out.split()) >= 1
    assert ckpt("scrub", "--rate", "nonsense").code == 2


def test_a_share_of_the_data(ckpt: Call, store: Path) -> None:
    packs = len(list(store.glob("packs/*/*.safetensors")))
    for _ in range(packs):
        answer = ckpt("verify", "--read-data=1%", "--json")
        assert (answer.code, answer.data["read_data"]) == (0, False)
    assert "1 pack of them read" in ckpt("verify", "--read-data=1%").out
    damage(store, "digits")
    assert sum(ckpt("verify", "--read-data=1%").code == 4 for _ in range(packs)) == 1
    assert ckpt("verify", "--read-data").code == 4
    for wrong in ("0", "101%", "x"):
        assert ckpt("verify", f"--read-data={wrong}").code == 2
    assert ckpt("verify", "--read-data=5%", "--headers-only").code == 2
    assert ckpt("verify", "latest", "--read-data=5%").code == 2


# -- mirror ---------------------------------------------------------------------------------------


def test_a_mirror_from_its_beginning_to_its_end(ckpt: Call, store: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    assert "ckpt mirror set" in ckpt("mirror").err
    answer = ckpt("mirror", "set", second)
    assert answer.code == 0
    assert "10 checkpoints" in answer.out
    assert ckpt("ls", "-q", at=second).out == ckpt("ls", "-q").out
    assert ckpt("verify", at=second).code == 0
    assert "in line" in ckpt("mirror").out
    with CheckpointManager(store, experiment="mnist") as manager:
        manager.save({"a": 1}, step=40, wait=True)
    assert ckpt("mirror", "status", "--json").data["behind"] is False
    ckpt("forget", "mnist@step=10", "--yes")
    assert ckpt("ls", "-q", at=second).out == ckpt("ls", "-q").out
    next(second.glob("packs/mnist/*.safetensors")).unlink()
    next(second.glob("checkpoints/mnist/*.json")).unlink()
    told = [f for f in ckpt("doctor", "--json").data["findings"] if f["check"] == "mirror"]
    assert ["lacks 1 checkpoint and 1 pack" in f["message"] for f in told] == [True]
    answer = ckpt("mirror")
    assert (answer.code, "lacks 1 checkpoint" in answer.out, "lacks 1 pack" in answer.out) == (3, True, True)
    assert ckpt("mirror", "sync").code == 0
    assert ckpt("mirror").code == 0
    assert "in line" in ckpt("doctor").out
    second.rename(tmp_path / "away")
    assert "out of reach" in ckpt("doctor").out
    assert ckpt("mirror").code == 1
    (tmp_path / "away").rename(second)
    assert ckpt("mirror", "off").code == 0
    assert ckpt("mirror").code == 1
    assert "no mirror" in ckpt("mirror", "off").out
    assert second.exists()


def test_what_stands_there_alone(ckpt: Call, store: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    ckpt("mirror", "set", second)
    before = files(store)
    next(store.glob("checkpoints/mnist/*.json")).unlink()
    answer = ckpt("mirror", "sync")
    assert "1 checkpoint there alone" in answer.out
    assert ckpt("repair").code == 0
    assert files(store) == before
    next(store.glob("checkpoints/mnist/*.json")).unlink()
    assert ckpt("mirror", "sync", "--delete", "--yes").code == 0
    assert ckpt("mirror", "--json").data["alone"] == []
    assert len(list(second.glob("checkpoints/*/*.json"))) == 9


@pytest.mark.parametrize("line", [("set",), ("sync", "somewhere"), ("status", "--delete")])
def test_calls_that_mean_nothing(ckpt: Call, line: tuple[str, ...]) -> None:
    assert ckpt("mirror", *line).code == 2
