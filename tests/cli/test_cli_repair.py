"""`ckpt parity`: what it writes, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.calls import Call, damage

pytest.importorskip("zfec")


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
