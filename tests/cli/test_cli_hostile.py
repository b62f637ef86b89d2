"""A store in which every text that somebody else can write acts on a terminal, and all commands that look at it."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ckpt_core import CheckpointManager
from ckpt_core.cli.program import COMMANDS as PROGRAM
from ckpt_core.format.sealed import seal
from cli.calls import Call

EVIL = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m\u2066\nx\r\x08"
ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
KEY = b"\x1b[2J\xe2\x80\xae-1.json"
COMMANDS = [
    ["ls"], ["ls", "digits"], ["experiments"], ["show", "digits@latest", "--leaves"], ["log", "digits"],
    ["diff", "digits@step=1", "digits@step=2"], ["cat", "digits@latest"], ["cat", "digits@latest", EVIL], ["cat", "digits@latest", "--manifest"],
    ["restore", "digits@latest", "out"], ["stats"], ["verify"], ["scrub"], ["doctor"], ["audit"], ["audit", "--verify"], ["prune", "--dry-run"],
    ["repair", "--dry-run"], ["mirror"], ["catalog", "list"], ["undelete"], ["forget", "digits@step=1", "--dry-run"], ["parity"], ["reindex"],
    ["tag", "digits@latest", EVIL], ["show", EVIL], ["verify", "--trusted-key", EVIL], ["keys", "show", EVIL], ["sign", "digits@latest", "--key", EVIL],
    ["metrics", "digits"], ["metrics", EVIL], ["export", "digits@latest", "exported"], ["import", EVIL], ["copy", EVIL, "copied"], ["hooks"],
    ["pin", "digits@latest"], ["unpin", "digits@latest"], ["completion", "bash"],
]  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "store"
    state = {EVIL: np.ones(3), "text": EVIL, "keys": {f"{EVIL}{n}": n for n in range(2)}}
    with CheckpointManager(root, experiment="digits") as manager:
        for step in (1, 2, 3):
            state[EVIL] = state[EVIL] + 1
            manager.save(state, step=step, metrics={EVIL: 1.0 / step}, reason=EVIL, wait=True)
        manager.log({EVIL: 1.0}, step=4)
        manager.forget("step=3")
    for path in root.glob("checkpoints/*/*.json"):
        document = json.loads(path.read_bytes())
        document.pop("sha256")
        texts = dict.fromkeys(("host", "platform", "python", "ckpt_core", "git_commit"), EVIL)
        document["writer"] |= texts | {"frameworks": {EVIL: EVIL}, "job": {EVIL: EVIL}}
        path.write_bytes(seal(document))
    (grace,) = root.glob("trash/*/*.grace.json")
    grace.write_bytes(seal({"format": 1, "seconds": 86400.0, "by": EVIL}))
    lease = {
        "format": 1,
        "id": ULID,
        "purpose": EVIL,
        "holder": EVIL,
        "process": EVIL,
        "seconds": 10**6,
        "lock": "",
    }
    (root / "leases").mkdir(exist_ok=True)
    (root / "leases" / f"{ULID}.json").write_bytes(seal(lease))
    moment = "2026-01-31T12:00:00.000000Z"
    (root / "mirror.json").write_bytes(seal({"format": 1, "url": f"file:///{EVIL}", "created_at": moment}))
    (root / "backups").mkdir(exist_ok=True)
    for folder in (
        ".",
        "packs/digits",
        "checkpoints/digits",
        "refs",
        "metrics/digits",
        "quarantine",
        "signatures",
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        with open(os.fsencode(root / folder) + b"/" + KEY, "wb"):
            pass
    with open(os.fsencode(root / "backups") + b"/catalog-\x1b[2J-20260101T000000000000Z.db", "wb"):
        pass
    with closing(sqlite3.connect(root / "catalog.db")) as connection, connection:
        tables = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        assert "audit_log" in tables
        columns = {row[1] for row in connection.execute("PRAGMA table_info(audit_log)")}
        for column in columns & {"actor", "event", "subject", "outcome"}:
            connection.execute(f"UPDATE audit_log SET {column} = ? WHERE id = 1", (EVIL,))
    return root


def test_every_command_is_tried() -> None:
    without_end = {"serve"}  # it answers programs
    assert {line[0] for line in COMMANDS} | without_end == PROGRAM.keys()


@pytest.mark.parametrize("form", ["text", "--json", "--quiet"])
@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: " ".join(map(ascii, line[:2])))
def test_nothing_acts_on_a_terminal(ckpt: Call, hostile: Path, line: list[str], form: str) -> None:
    answer = ckpt(*line, *([] if form == "text" else [form]), at=hostile)
    for text in (answer.out, answer.err):
        assert not [letter for letter in text if letter != "\n" and not letter.isprintable()]
    assert "this should not happen" not in answer.err
    if form == "--json":
        json.loads(answer.out)
