"""The benchmarks run and report: for function. That nothing here looks at a time is on purpose."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
GOALS = {f"P{number}" for number in range(1, 16)} | {"growth"}
WITHOUT_TORCH = {"P11", "P12", "P14", "P15"}
TORCH = importlib.util.find_spec("torch") is not None
NEIGHBOURS = {
    "torch.save", "safetensors", "DCP, 1 thread", "DCP, 4 threads", "Lightning AsyncCheckpointIO", "Orbax v0",
    "Orbax v1", "Keras save_weights", "torch-checkpointing", "moonclip",
}  # fmt: skip


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a module of this checkout's benchmarks."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


# -- the whole of it -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_quick_run_has_every_row(tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    work.mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "integrations")])}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--out", out, "--work", work],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=880, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((out / "results.json").read_text("utf-8"))
    check_facts(results)
    check_rows(results["rows"], GOALS if TORCH else WITHOUT_TORCH)
    for race in results["races"]:
        for each in race["contenders"]:
            assert ("problem" in each) or each["min"] <= each["median"] <= each["max"], (race["figure"], each)
    assert all(len(curve["points"]) > 1 for curve in results["curves"])
    check_neighbours(results["neighbours"], done.stdout)
    assert "shows that everything works" in done.stdout
    measured = (out / "measured.md").read_text("utf-8")
    assert all(row["figure"] in measured for row in results["rows"])
    check_plots(out / "img", {curve["plot"] for curve in results["curves"]}, done.stdout)
    assert list(work.iterdir()) == [], "something was left behind"


def check_facts(results: dict[str, Any]) -> None:
    assert results["format"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", results["date"])
    assert results["options"]["quick"] is True
    assert {"processor", "cores", "memory_gb", "system", "python", "file_system", "o_direct"} <= results[
        "machine"
    ].keys()
    assert {"numpy"} <= results["versions"].keys()


def check_rows(rows: list[dict[str, Any]], goals: set[str]) -> None:
    assert {row["goal"] for row in rows} - {None} == goals
    for row in rows:
        # A row has a figure, or says why it has none; only what is not built yet may have none.
        assert row["value"] is not None or re.search("not built|not installed|no neighbour", row["note"]), row
        assert (row["met"] is None) == (row["goal"] is None)


def check_neighbours(neighbours: list[dict[str, Any]], printed: str) -> None:
    assert {each["name"] for each in neighbours} == NEIGHBOURS
    for each in neighbours:
        if each["problem"] is not None:
            assert each["problem"].startswith("not installed: pip install ")
            assert each["problem"] in printed


def check_plots(folder: Path, curves: set[str], printed: str) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        assert "no plots: matplotlib is not installed" in printed
        return
    drawn = {path.stem: path.read_text("utf-8") for path in folder.glob("*.svg")}
    assert curves <= drawn.keys()
    assert all("</svg>" in text for text in drawn.values())


# -- its parts -----------------------------------------------------------------------------------------


def test_rounds_are_interleaved_and_the_first_is_not_counted(load: Any, tmp_path: Path) -> None:
    timing = load("timing")
    turns: list[str] = []

    def contender(name: str) -> Any:
        @contextmanager
        def start(folder: Path) -> Iterator[Callable[[], object]]:
            assert list(folder.iterdir()) == [], "not a fresh folder"
            (folder / "left").touch()
            yield lambda: turns.append(name)

        return timing.Contender(name, start)

    found = timing.race([contender("a"), contender("b")], 2, tmp_path)
    assert turns == ["a", "b"] * 3
    assert [len(samples.values) for samples in found.values()] == [2, 2]


def test_a_neighbour_that_fails_says_so_and_ours_ends_the_run(load: Any, tmp_path: Path) -> None:
    timing = load("timing")

    @contextmanager
    def start(folder: Path) -> Iterator[Callable[[], object]]:
        yield lambda: 1 / 0

    found = timing.race([timing.Contender("other", start, optional=True)], 2, tmp_path)
    assert found["other"].problem == "failed: division by zero"
    assert not found["other"]
    with pytest.raises(ZeroDivisionError):
        timing.race([timing.Contender("ours", start)], 1, tmp_path)


def test_a_wrong_load_is_noticed(load: Any, tmp_path: Path) -> None:
    timing = load("timing")

    @contextmanager
    def start(folder: Path) -> Iterator[Callable[[], object]]:
        yield lambda: "other bytes"

    def check(loaded: object) -> None:
        raise AssertionError(loaded)

    contender = timing.Contender("other", start, check=check, optional=True)
    assert timing.race([contender], 1, tmp_path)["other"].problem == "failed: other bytes"


@pytest.mark.parametrize(
    ("sign", "bound", "times", "value", "met"),
    [(">=", 0.95, False, 0.5, False), (">=", 0.5, False, 0.5, True), ("<=", 1.2, True, 2.0, False)],
)
def test_a_limit_is_compared_as_the_goal_says(
    load: Any, sign: str, bound: float, times: bool, value: float, met: bool
) -> None:
    module, timing = load("results"), load("timing")
    results = module.Results()
    ours, limit = timing.Samples("ours", values=[2.0, 4.0, 9.0]), timing.Samples("raw", values=[2.0])
    results.against_limit("group", "figure", ours, limit, module.Goal("P0", sign, bound), times=times)
    assert (results.rows[0].value, results.rows[0].met) == (value, met)


def test_the_fastest_neighbour_is_the_one_compared_with(load: Any) -> None:
    module, timing = load("results"), load("timing")
    results = module.Results()
    others = [timing.Samples("slow", values=[9.0]), timing.Samples("fast", values=[3.0])]
    others.append(timing.Samples("absent", problem="not installed"))
    results.against_neighbours("group", "figure", timing.Samples("ours", values=[2.0]), others)
    assert results.rows[0].value == 1.5
    assert results.rows[0].neighbour.name == "fast"


def test_what_has_no_figure_does_not_meet_its_goal(load: Any) -> None:
    module = load("results")
    results = module.Results()
    results.not_measured("group", "figure", "not built", module.Goal("P0", "<=", 1.0))
    assert results.rows[0].met is False


def test_a_group_measured_again_takes_the_place_of_what_was_found(load: Any, tmp_path: Path) -> None:
    module, timing, report, earlier = load("results"), load("timing"), load("report"), load("earlier")

    def found(groups: list[str], seconds: float) -> Any:
        results = module.Results(facts={"date": f"{seconds}", "load_average": [0.1, 0.2], "options": {}})
        for group in groups:
            samples = timing.Samples("ours", values=[seconds] * 3)
            results.race(group, "race", {"ours": samples, "absent": timing.Samples("absent", problem="why")})
            goal = module.Goal("P0", "<=", 1000.0, "× state")
            results.against_limit(
                group, "figure", samples, timing.Samples("raw", values=[1.0]), goal, times=True
            )
            results.curves.append(module.Curve(group, "line", "x", "y", ((1.0, seconds),)))
        return results

    report.write_json(found(["save", "load"], 2.0), tmp_path / "results.json")
    first = earlier.read(tmp_path / "results.json")
    assert report.as_json(first) == report.as_json(found(["save", "load"], 2.0))
    both = earlier.put_in(first, found(["save"], 5.0), ("save", "load"))
    assert [(row.group, row.value) for row in both.rows] == [("save", 5.0), ("load", 2.0)]
    assert [(race[0], race[2][0].values[0]) for race in both.races] == [("save", 5.0), ("load", 2.0)]
    assert {curve.plot: curve.points[0][1] for curve in both.curves} == {"save": 5.0, "load": 2.0}
    assert both.facts["date"] == "2.0"
    assert both.facts["again"]["save"]["date"] == "5.0"


def test_the_page_gets_its_measured_part(load: Any, tmp_path: Path) -> None:
    report = load("report")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", "utf-8")
    report.put_between("new", page)
    assert page.read_text("utf-8") == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    page.write_text("no marks", "utf-8")
    with pytest.raises(ValueError, match="no place"):
        report.put_between("new", page)


def test_the_page_explains_every_figure_and_option(load: Any) -> None:
    text = PAGE.read_text("utf-8")
    main, report = load("__main__"), load("report")
    assert {goal for goal in GOALS if f"| {goal} |" in text} == GOALS
    assert all(f"`{group}`" in text for group in main.GROUPS)
    assert report.BEGIN in text
    assert report.END in text
    options = set(re.findall(r"--[a-z]+", main._parser().format_help())) - {"--help"}
    assert {option for option in options if f"`{option}" in text} == options
