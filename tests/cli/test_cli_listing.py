"""`ls`, `experiments`, `show` and `log`: what is there, and how it came about."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from ckpt_core import CheckpointManager
from cli.calls import Call, ids, model, train


def steps(ckpt: Call, *arguments: str) -> list[int]:
    return [row["step"] for row in ckpt("ls", *arguments, "--json").data["checkpoints"]]


def test_ls_lists_the_newest_last(ckpt: Call) -> None:
    assert steps(ckpt, "digits") == [100, 200, 300, 400, 300, 500, 100]
    assert steps(ckpt, "mnist") == [10, 20, 30]
    assert len(steps(ckpt)) == 10
    assert len(steps(ckpt, "mnist", "digits")) == 10


def test_ls_limits_and_filters(ckpt: Call) -> None:
    assert steps(ckpt, "digits", "--last", "2") == [500, 100]
    assert steps(ckpt, "-n", "1") == [100, 30]
    assert steps(ckpt, "--tag", "release-*") == [500, 20]
    assert steps(ckpt, "--tag", "nothing*") == []
    assert "no checkpoint has such a tag" in ckpt("ls", "--tag", "nothing*").out


def test_ls_shows_a_table_of_the_newest_and_says_how_many_more_there_are(
    ckpt: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckpt_core.cli.commands.ls._SHOWN", 3)
    answer = ckpt("ls")
    assert len(answer.out.splitlines()) == 1 + 6
    assert answer.err == "note: 4 older ones of digits are not shown: ckpt ls digits --all, or --last N\n"
    shown = [line.split()[0] for line in answer.out.splitlines()[1:]]
    newest = ids(ckpt, "digits", "--last", "3") + ids(ckpt, "mnist", "--last", "3")
    assert sorted(shown) == sorted(each[: len(shown[0])] for each in newest)
    assert ckpt("ls", "mnist").err == ""
    for all_of_them in (("ls", "--all"), ("ls", "-n", "7")):
        answer = ckpt(*all_of_them)
        assert (len(answer.out.splitlines()), answer.err) == (11, "")
    assert len(ids(ckpt)) == len(steps(ckpt)) == 10
    assert ckpt("ls", "digits", "--last", "3").err == ""


def test_ls_by_a_metric_is_best_first(ckpt: Call) -> None:
    assert steps(ckpt, "mnist", "--metric", "accuracy", "--mode", "max") == [30, 20, 10]
    assert steps(ckpt, "mnist", "--metric", "accuracy") == [10, 20, 30]
    assert ckpt("ls", "mnist", "--metric", "typo").code == 1


def test_ls_tells_all_of_a_checkpoint(ckpt: Call) -> None:
    rows = ckpt("ls", "digits", "--json").data["checkpoints"]
    row = rows[5]
    assert (row["experiment"], row["step"], row["tags"], row["pinned"]) == (
        "digits",
        500,
        ["release-1"],
        False,
    )
    assert row["attempt"]["number"] == 2
    assert row["attempt"]["resumed_step"] == 200
    assert row["metrics"] == {"val_loss": 0.9 / 500}
    assert row["parent"] == rows[4]["id"]
    assert row["logical_bytes"] == sum(a.nbytes for a in _tensors(model()))
    assert row["written_bytes"] > 0
    assert [r["latest"] for r in rows] == [False] * 6 + [True]
    assert [r["pinned"] for r in rows] == [False, False, True, False, False, False, False]


def _tensors(state: object) -> list[np.ndarray]:
    if isinstance(state, np.ndarray):
        return [state]
    if isinstance(state, dict):
        state = list(state.values())
    return [found for item in state for found in _tensors(item)] if isinstance(state, (list, tuple)) else []


def test_ls_draws_a_table(ckpt: Call) -> None:
    lines = ckpt("ls", "mnist").out.splitlines()
    assert lines[0].split() == ["ID", "EXPERIMENT", "ATTEMPT", "STEP", "SAVED", "AT", "accuracy", "val_loss",
                                "SIZE", "NEW", "MARKS"]  # fmt: skip
    assert len(lines) == 4
    assert lines[2].split()[1:4] == ["mnist", "1", "20"]
    assert lines[2].endswith("release-1")
    assert lines[3].endswith("latest")
    shown = lines[3].split()[0]
    assert ids(ckpt, "mnist")[-1].startswith(shown)
    assert ckpt("show", shown, "-q").out.strip() == ids(ckpt, "mnist")[-1]


def test_ls_of_nothing(ckpt: Call, tmp_path: Path) -> None:
    CheckpointManager(tmp_path / "empty", experiment="none").close()
    answer = ckpt("ls", at=tmp_path / "empty")
    assert (answer.code, answer.out) == (0, "the store has no checkpoints yet\n")
    assert ckpt("ls", "--json", at=tmp_path / "empty").data == {"checkpoints": []}
    assert ckpt("log", at=tmp_path / "empty").out == "the store has no checkpoints yet\n"
    assert ckpt("experiments", at=tmp_path / "empty").out == "the store has no experiments yet\n"
    assert ckpt("stats", at=tmp_path / "empty").code == 0
    assert ckpt("verify", at=tmp_path / "empty").code == 0
    assert ckpt("show", at=tmp_path / "empty").code == 1


def test_experiments(ckpt: Call) -> None:
    rows = ckpt("experiments", "--json").data["experiments"]
    assert [(r["name"], r["checkpoints"], r["attempts"], r["last_step"]) for r in rows] == [
        ("digits", 7, 3, 100),
        ("mnist", 3, 1, 30),
    ]
    assert rows[1]["logical_bytes"] > 0
    lines = ckpt("experiments").out.splitlines()
    assert lines[1].split()[:5] == ["digits", "finished", "7", "3", "100"]


# -- show -----------------------------------------------------------------------------------------


def test_show_tells_where_a_checkpoint_comes_from(ckpt: Call) -> None:
    data = ckpt("show", "digits@release-1", "--json").data
    assert (data["step"], data["attempt"]["resumed_step"]) == (500, 200)
    assert data["writer"]["frameworks"]["numpy"] == np.__version__
    assert {row["name"]: (row["tensors"], row["values"]) for row in data["branches"]} == {
        "model": (2, 0),
        "optimizer": (2, 3),
        "config": (0, 4),
        "epoch": (0, 1),
    }
    assert "tensor_list" not in data
    text = ckpt("show", "digits@release-1").out
    for word in ("resumed from step 200", "release-1", "val_loss = 0.0018", "model: 2 tensors"):
        assert word in text


def test_show_lists_leaves(ckpt: Call) -> None:
    data = ckpt("show", "digits@release-1", "--leaves", "--json").data
    assert [t["path"] for t in data["tensor_list"]] == [
        "model/fc.weight", "model/fc.bias", "optimizer/moments/0", "optimizer/moments/1",
    ]  # fmt: skip
    assert data["tensor_list"][0] | {"index": 0} == {
        "path": "model/fc.weight", "dtype": "F32", "shape": [16, 8], "bytes": 512, "index": 0,
    }  # fmt: skip
    assert {v["path"]: v["value"] for v in data["values"]}["config/name"] == "digits"
    assert "model/fc.weight" in ckpt("show", "digits@release-1", "--leaves").out


def test_show_tells_of_the_last_verification(ckpt: Call) -> None:
    assert ckpt("show", "digits@latest", "--json").data["verified"] is None
    ckpt("verify", "digits@latest")
    assert ckpt("show", "digits@latest", "--json").data["verified"]["outcome"] == "ok"
    assert ckpt("show", "digits@warm", "--json").data["verified"] is None
    ckpt("verify")
    assert ckpt("show", "digits@warm", "--json").data["verified"]["outcome"] == "ok"


# -- best -----------------------------------------------------------------------------------------


def test_best_is_of_the_newest_lineage(ckpt: Call) -> None:
    assert ckpt("show", "digits@best", "--metric", "val_loss", "--json").data["step"] == 100
    assert ckpt("show", "mnist@best", "--metric", "accuracy", "--mode", "max", "--json").data["step"] == 30


def test_best_by_the_only_metric_is_said(ckpt: Call) -> None:
    answer = ckpt("show", "digits@best", "--json")
    assert answer.code == 0
    assert "best by val_loss (min)" in answer.err
    assert ckpt("show", "digits@best", "-q").err == ""
    answer = ckpt("show", "mnist@best")
    assert answer.code == 2
    assert "accuracy, val_loss" in answer.err


# -- log ------------------------------------------------------------------------------------------


def test_log_draws_resumes_and_beginnings(ckpt: Call) -> None:
    lines = ckpt("log", "digits").out.splitlines()
    assert lines[0].startswith("digits  7 checkpoints, 3 attempts, 2 of them from nothing")
    drawn = [re.fullmatch(r"([*|/: ]*)(.*)", line) for line in lines[1:]]
    graph, words = [d[1].rstrip() for d in drawn if d], [d[2] for d in drawn if d]
    assert graph == ["*", "", "*", "*", "|", "| *", "| *", "|/", "*", "*", ""]
    assert words[0].endswith("val_loss=0.008  (latest)")
    assert words[1] == "attempt 3 began from nothing"
    assert "step 500" in words[2]
    assert words[4].startswith("attempt 2 resumed from step 200")
    assert "step 400" in words[5]
    assert "step 200" in words[8]
    assert words[10] == "attempt 1 began from nothing"


def test_log_as_a_document(ckpt: Call) -> None:
    (found,) = ckpt("log", "digits", "--json").data["experiments"]
    assert [a["number"] for a in found["attempts"]] == [1, 2, 3]
    by_id = {row["id"]: row for row in found["checkpoints"]}
    rows = [
        (row["step"], by_id[row["follows"]]["step"] if row["follows"] else None) for row in by_id.values()
    ]
    assert rows == [(100, None), (500, 300), (300, 200), (400, 300), (300, 200), (200, 100), (100, None)]


def test_log_limits(ckpt: Call) -> None:
    lines = ckpt("log", "digits", "-n", "2").out.splitlines()
    assert "older ones are left out" in lines[-1]
    assert sum(" step " in line and "*" in line for line in lines) == 2
    (found,) = ckpt("log", "digits", "-n", "2", "--json").data["experiments"]
    assert len(found["checkpoints"]) == 2


def test_log_joins_what_forgotten_checkpoints_leave(ckpt: Call) -> None:
    assert ckpt("forget", "digits@step=200").code == 0
    text = ckpt("log", "digits").out
    assert ":" in text.replace("digits  ", "").splitlines()[5]
    assert "resumed from step 200" in text
    assert "since forgotten" in text


def test_log_marks_the_best(ckpt: Call) -> None:
    text = ckpt("log", "mnist", "--metric", "accuracy", "--mode", "max").out
    assert "(latest, best)" in text.splitlines()[1]
    assert "val_loss" not in text


# -- hostile names --------------------------------------------------------------------------------

HOSTILE = ["[bold]x[red]", "a b", "日本語", "100%", "~tilde", "'; drop table checkpoints; --", "x" * 200]


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_an_experiment_may_have(name: str, ckpt: Call, tmp_path: Path) -> None:
    store = tmp_path / "named"
    with CheckpointManager(store, experiment=name) as manager:
        train(manager, model(), range(100, 201, 100))
        manager.tag("latest", name)
    assert ckpt("experiments", "-q", at=store).out == f"{name}\n"
    assert name in ckpt("ls", at=store).out
    assert ckpt("show", f"{name}@{name}", "--json", at=store).data["step"] == 200
    assert ckpt("log", name, at=store).code == 0


def test_what_a_state_holds_cannot_reach_the_terminal(ckpt: Call, tmp_path: Path) -> None:
    store = tmp_path / "hostile"
    evil = "\x1b]0;owned\x07\u202e"
    state = {evil: np.ones(3), "text": evil, "nested": {evil + "\n": [evil]}}
    with CheckpointManager(store, experiment="x") as manager:
        manager.save(state, step=1, metrics={evil: 1.0}, wait=True)
        manager.save({**state, evil: np.zeros(3), "text": "else"}, step=2, wait=True)
    calls = [
        ("ls",),
        ("show", "latest", "--leaves"),
        ("log",),
        ("diff", "step=1", "step=2"),
        ("cat", "step=1", "text"),
        ("cat", "step=1", evil),
        ("cat", "step=1"),
        ("cat", "step=1", "--manifest"),
        ("stats",),
        ("restore", "step=1", "out.safetensors"),
        ("show", evil),
        ("cat", "step=1", evil + "x"),
    ]
    for call in calls:
        answer = ckpt(*call, at=store)
        for line in (*answer.out.splitlines(), *answer.err.splitlines()):
            assert line.isprintable(), (call, line)
