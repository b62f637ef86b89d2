"""`hooks`: the order in which hooks run, of the last run and of the next; and what the doctor says of one left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ckpt_core import BaseHook, CheckpointManager, EverySteps, HookContext, HookEvent, HookPriority
from cli.calls import Call

PLUGIN = """
from ckpt_core import BaseHook, HookEvent, HookPriority

class Tell(BaseHook):
    events = (HookEvent.AFTER_SAVE,)
    priority = HookPriority.LOW

    def __init__(self, *, word: str) -> None:
        super().__init__()

    def execute(self, context):
        pass
"""


class Guard(BaseHook):
    name = "guard"
    events = (HookEvent.STEP_END, HookEvent.BEFORE_SAVE)
    priority = HookPriority.CRITICAL

    def execute(self, context):
        if context.event is HookEvent.STEP_END:
            raise ConnectionError("no route to \x1b[2Jhost")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site"
    (folder / "acme-1.2.dist-info").mkdir(parents=True)
    (folder / "acme-1.2.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
    (folder / "acme-1.2.dist-info/entry_points.txt").write_text(
        "[ckpt_core.hooks]\nacme-tell = acme_cli_plugin:Tell\nacme-gone = acme_cli_plugin:Gone\n"
    )
    (folder / "acme_cli_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(folder))


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)


def run(store: Path, failures: int = 0) -> None:
    with CheckpointManager(store, experiment="run", hooks=[Guard()], save_policy=EverySteps(10)) as manager:
        for step in range(failures):
            manager.hooks.fire(HookContext(HookEvent.STEP_END, step=step))
        manager.save({"w": np.ones(3)}, step=1, wait=True)


def rows(answer: object, *, of: str | None = None) -> list[tuple[object, ...]]:
    return [
        (row["event"], row["order"], row["priority"], row["name"], row["source"], row["state"])
        for row in answer.data["hooks"]  # type: ignore[attr-defined]
        if of in (None, row["name"])
    ]


def test_the_hooks_of_the_last_run_in_their_order(ckpt: Call, store: Path) -> None:
    run(store)
    answer = ckpt("hooks", "--json")
    assert answer.data["run"] == {"experiment": "run", "attempt": 1, "state": "ended"}
    found = [row for row in rows(answer) if row[5] == "active"]
    assert found[:4] == [
        ("train_begin", 1, "normal", "save-policy", "built in", "active"),
        ("step_end", 1, "critical", "guard", "code", "active"),
        ("step_end", 2, "normal", "save-policy", "built in", "active"),
        ("evaluate_end", 1, "normal", "save-policy", "built in", "active"),
    ]
    (guard,) = [
        row for row in answer.data["hooks"] if row["name"] == "guard" and row["event"] == "before_save"
    ]
    assert guard["statistics"]["calls"] == 1
    assert ckpt("hooks", "-q").out == "save-policy\nguard\n"
    assert ckpt("hooks", "digits", "--json").data["run"] is None


def test_what_the_file_names_for_the_next_run(ckpt: Call, store: Path, installed: None) -> None:
    write(
        Path("ckpt.toml"),
        '[[hooks]]\nuse = "acme-tell"\nword = "x"\npriority = "high"\n[[hooks]]\nuse = "acme-tell"\nname = "off"\n'
        'word = "y"\nenabled = false\n',
    )
    answer = ckpt("hooks", "--json")
    assert answer.code == 0
    assert Path(answer.data["file"]).name == "ckpt.toml"
    assert rows(answer, of="acme-tell") == [("after_save", 1, "high", "acme-tell", "ckpt.toml", "active")]
    assert rows(answer, of="off") == [("after_save", None, "low", "off", "ckpt.toml", "disabled")]
    with CheckpointManager(store, experiment="run") as manager:
        manager.save({"w": np.ones(3)}, step=1, wait=True)
    assert rows(ckpt("hooks", "--json"), of="acme-tell") == rows(answer, of="acme-tell")  # once, not twice


def test_what_is_installed_and_what_is_broken(ckpt: Call, installed: None) -> None:
    answer = ckpt("hooks", "--json")
    assert rows(answer, of="acme-tell") == [
        ("after_save", None, "low", "acme-tell", "entry point of acme", "installed")
    ]
    assert rows(answer, of="acme-gone") == [(None, None, None, "acme-gone", "entry point of acme", "broken")]
    assert answer.code == 0
    write(Path("ckpt.toml"), '[[hooks]]\nuse = "acme-tell"\n')
    answer = ckpt("hooks")
    assert answer.code == 1
    assert "it has to be given" in answer.out


def test_a_file_that_cannot_be_read_is_a_usage_error(ckpt: Call) -> None:
    write(Path("ckpt.toml"), "hooks = 3")
    answer = ckpt("hooks")
    assert answer.code == 2
    assert "it must be a list of tables" in answer.err


def test_without_a_store_the_file_is_shown(ckpt: Call, installed: None) -> None:
    write(Path("ckpt.toml"), '[[hooks]]\nuse = "acme-tell"\nword = "x"\n')
    assert rows(ckpt("hooks", "--json", at=None), of="acme-tell")[0][5] == "active"
    assert ckpt("hooks", at=Path("nowhere")).code == 10


def test_one_that_was_left_out_is_told_here_and_by_the_doctor(ckpt: Call, store: Path) -> None:
    run(store, failures=6)
    answer = ckpt("hooks")
    assert "left out" in answer.out
    assert "\x1b[2J" not in answer.out
    found = [f for f in ckpt("doctor", "--json").data["findings"] if f["check"] == "hooks"]
    assert [finding["level"] for finding in found] == ["warning"]
    assert found[0]["message"].startswith("hook guard of run failed again and again, and was left out at ")
    run(store)  # the next run goes well
    assert not [f for f in ckpt("doctor", "--json").data["findings"] if f["check"] == "hooks"]
