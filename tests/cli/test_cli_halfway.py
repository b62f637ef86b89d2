"""`ckpt doctor` names what is half done, and what it advises helps; to ask changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ckpt_core.repository.leases import Leases
from ckpt_core.stores import LocalStore
from cli.calls import Call


def findings(ckpt: Call, check: str) -> list[dict[str, Any]]:
    found = ckpt("doctor", "--json").data
    rows: list[dict[str, Any]] = found["findings"] if isinstance(found, dict) else found
    return [row for row in rows if row["check"] == check]


def test_who_is_at_work(ckpt: Call, store: Path) -> None:
    assert findings(ckpt, "leases")[0]["message"] == "nobody is at work on the store"
    with Leases(LocalStore(store), "another machine/1/2/3").take("save"):
        (found,) = findings(ckpt, "leases")
        assert (found["level"], "at work: save by" in found["message"]) == ("ok", True)


def test_what_the_dead_left_behind(ckpt: Call, store: Path) -> None:
    (store / "leases").mkdir(exist_ok=True)
    (store / "leases" / "torn.json").write_bytes(b"")
    (found,) = findings(ckpt, "leases")
    assert (found["level"], "1 lease left behind" in found["message"]) == ("note", True)
    assert (store / "leases" / "torn.json").exists()
    ckpt("prune")
    assert findings(ckpt, "leases")[0]["level"] == "ok"


def test_a_forget_that_was_interrupted(ckpt: Call, store: Path) -> None:
    manifest = sorted((store / "checkpoints").rglob("*.json"))[0]
    copy = store / "trash" / manifest.relative_to(store / "checkpoints")
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(manifest, copy)
    (found,) = findings(ckpt, "forgets")
    assert "interrupted halfway" in found["message"]
    ckpt("prune")
    assert findings(ckpt, "forgets") == []
    assert manifest.exists()


def test_what_waits_in_the_trash(ckpt: Call, store: Path) -> None:
    ckpt("forget", "mnist@step=10")
    (found,) = findings(ckpt, "trash")
    assert "can still be brought back" in found["message"]
    ckpt("undelete", "step=10")
    assert findings(ckpt, "trash") == []
