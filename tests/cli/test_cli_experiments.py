"""`experiments` in full and side by side, `metrics`, and series drawn with text."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ckpt_core import CheckpointManager
from ckpt_core.cli.plot import draw
from cli.calls import Call


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "store"
    for name, lr in (("first", 0.1), ("second", 0.2)):
        config = {"optimizer": {"lr": lr, "name": "adamw"}}
        with CheckpointManager(root, experiment=name, config=config) as manager:
            for step in range(20):
                manager.log({"loss": math.exp(-step / 5) + lr, "bad": math.nan}, step=step)
            manager.save({"w": 1}, step=20, wait=True)
    with (
        pytest.raises(RuntimeError),
        CheckpointManager(root, experiment="third\x1b[31m".replace("\x1b[", "")),
    ):
        raise RuntimeError  # began nothing
    with pytest.raises(RuntimeError), CheckpointManager(root, experiment="failed") as manager:
        manager.log({"loss": 1.0}, step=1)
        raise RuntimeError("\x1b[31mred")
    return root


def names(ckpt: Call, runs: Path, *options: str) -> list[str]:
    answer = ckpt("experiments", "-q", *options, at=runs)
    assert answer.code == 0
    return answer.out.split()


def test_a_list_of_those_that_are_so(ckpt: Call, runs: Path) -> None:
    assert names(ckpt, runs) == ["failed", "first", "second"]
    assert names(ckpt, runs, "--status", "failed") == ["failed"]
    assert names(ckpt, runs, "--config", "optimizer.lr>0.1") == ["second"]
    assert names(ckpt, runs, "--config", "optimizer.lr>=0.1", "--config", "optimizer.lr!=0.2") == ["first"]
    assert names(ckpt, runs, "--tag", "nothing") == []
    assert "no such experiments" in ckpt("experiments", "--tag", "nothing", at=runs).out
    wrong = ckpt("experiments", "--config", "lr", at=runs)
    assert (wrong.code, "is no condition" in wrong.err) == (2, True)


def test_tags(ckpt: Call, runs: Path) -> None:
    assert ckpt("experiments", "tag", "first", "one", "two", at=runs).out == "first: one, two\n"
    assert names(ckpt, runs, "--tag", "one", "--tag", "two") == ["first"]
    assert ckpt("experiments", "untag", "first", "one", "--json", at=runs).data == {
        "experiment": "first",
        "tags": ["two"],
    }
    assert ckpt("experiments", "untag", "first", "two", at=runs).code == 0
    assert ckpt("experiments", "tag", "nowhere", "x", at=runs).code == 1
    assert [e["event"] for e in ckpt("audit", "--json", at=runs).data["entries"]][:2] == [
        "untag-experiment"
    ] * 2


def test_one_in_full(ckpt: Call, runs: Path) -> None:
    (found,) = ckpt("experiments", "show", "first", "--json", at=runs).data["experiments"]
    assert found["config"] == {"optimizer": {"lr": 0.1, "name": "adamw"}}
    assert (found["status"], found["parent"], len(found["attempts"])) == ("finished", None, 1)
    assert found["environment"]["packages"]["numpy"]
    text = ckpt("experiments", "show", "first", at=runs).out
    assert "optimizer.lr = 0.1" in text
    assert "packages." not in text
    failed = ckpt("experiments", "show", "failed", at=runs).out
    assert "RuntimeError: \\u001b[31mred" in failed
    assert "\x1b" not in failed


def test_side_by_side(ckpt: Call, runs: Path) -> None:
    lines = ckpt("experiments", "compare", "first", "second", at=runs).out.splitlines()
    assert ["optimizer.lr", "0.1", "0.2"] in [line.split() for line in lines]
    assert not any("optimizer.name" in line for line in lines)
    assert "optimizer.name" in ckpt("experiments", "compare", "first", "second", "--all", at=runs).out
    rows = ckpt("experiments", "compare", "first", "second", "failed", "--json", at=runs).data["rows"]
    found = {(row["group"], row["name"]): row for row in rows}
    assert found["status", "status"]["values"] == ["finished", "finished", "failed"]
    assert found["config", "optimizer.lr"]["values"] == [0.1, 0.2, None]
    assert found["metric", "bad last"]["values"][:2] == ["nan", "nan"]


@pytest.mark.parametrize(
    "line",
    [
        ("compare",),
        ("compare", "first"),
        ("show",),
        ("tag", "first"),
        ("list", "first"),
        ("show", "first", "--tag", "x"),
    ],
)
def test_calls_that_mean_nothing(ckpt: Call, runs: Path, line: tuple[str, ...]) -> None:
    assert ckpt("experiments", *line, at=runs).code == 2


def test_metrics_in_a_line_each(ckpt: Call, runs: Path) -> None:
    found = ckpt("metrics", "first", "--json", at=runs).data["metrics"]
    assert [(each["name"], each["count"]) for each in found] == [("bad", 20), ("loss", 20)]
    assert found[1]["min"]["step"] == 19
    assert found[0]["min"] is None
    assert found[0]["last"]["value"] == "nan"
    assert "points" not in found[1]
    lines = [line.split() for line in ckpt("metrics", "first", at=runs).out.splitlines()]
    assert lines[2] == ["loss", "20", "0.12237", "19", "0.12237", "19", "1.1", "0"]
    assert ckpt("metrics", "first", "-q", at=runs).out == "bad\nloss\n"


def test_every_value_of_a_metric(ckpt: Call, runs: Path) -> None:
    (found,) = ckpt("metrics", "first", "loss", "--from", "3", "--to", "5", "--json", at=runs).data["metrics"]
    assert [point["step"] for point in found["points"]] == [3, 4, 5]
    assert len(ckpt("metrics", "first", "loss", at=runs).out.splitlines()) == 21


def test_what_is_not_there(ckpt: Call, runs: Path) -> None:
    answer = ckpt("metrics", "first", "lost", at=runs)
    assert (answer.code, "it has bad, loss" in answer.err) == (1, True)
    answer = ckpt("metrics", "nowhere", at=runs)
    assert (answer.code, "there are 'failed', 'first', 'second'" in answer.err) == (1, True)


def test_drawn(ckpt: Call, runs: Path) -> None:
    lines = ckpt("metrics", "first", "--plot", at=runs).out.splitlines()
    assert lines[0] == "bad  20 points"
    assert lines[1] == "nothing that could be drawn"
    assert lines[3] == "loss  20 points"
    assert lines[4].lstrip().startswith("1.1 │⠑")
    assert lines[-1].split() == ["0", "19"]


def test_a_plot_in_ascii() -> None:
    assert draw([0, 1, 2, 3], [0, 1, 2, 3], width=4, height=4, dots=False) == [
        "3 |   *", "  |  *", "  | *", "0 |*", "  +----", "   0  3",
    ]  # fmt: skip


def test_dots_are_eight_to_a_character() -> None:
    assert draw([0, 1], [0, 3], width=1, height=1)[0] == "3 │⡜"
    assert [line[0:] for line in draw([0, 1], [0, 7], width=1, height=2)[:2]] == ["7 │⢸", "0 │⡇"]


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([5.0], "5"),
        ([5.0, 5.0, 5.0], "5"),
        ([-1.7e308, 1.7e308], "1.7e+308"),
        ([1e-320, 2e-320], "2e-320"),
    ],
)
def test_odd_ranges(values: list[float], ends: str) -> None:
    lines = draw(list(range(len(values))), values, width=10, height=3)
    assert lines[0].strip().startswith(ends)
    assert len(lines) == 5


def test_nothing_finite_is_nothing() -> None:
    assert draw([1, 2], [math.nan, math.inf]) == []
    assert draw([], []) == []


def test_how_attempts_fared(ckpt: Call, runs: Path) -> None:
    found = {each["experiment"]: each for each in ckpt("stats", "--perf", "--json", at=runs).data["attempts"]}
    assert found.keys() == {"failed", "first", "second"}
    assert found["first"]["latencies"]["save"]["count"] == 1
    assert found["failed"]["status"] == "failed"
    lines = ckpt("stats", "--perf", at=runs).out.splitlines()
    assert len(lines) == 4
    assert lines[2].split()[:2] == ["first", "finished"]
