"""What a terminal of 80 columns sees and is asked, without one: the width and the answers are given."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ckpt_core import CheckpointManager
from ckpt_core.cli.output import Output
from ckpt_core.cli.program import program
from cli.calls import Call

WIDE = [
    ("ls",), ("experiments",), ("log",), ("stats",), ("tag",), ("show", "digits@latest", "--leaves"),
    ("diff", "digits@step=400", "digits@step=500"), ("forget", "--keep-last", "1", "--dry-run"),
    ("cat", "digits@latest", "model/fc.weight"),
]  # fmt: skip


@pytest.fixture
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Output, "width", property(lambda output: 80))


@pytest.mark.usefixtures("_narrow")
@pytest.mark.parametrize("arguments", WIDE, ids=lambda arguments: arguments[0])
def test_lines_fit(arguments: tuple[str, ...], ckpt: Call) -> None:
    answer = ckpt(*arguments)
    assert answer.code == 0
    assert max(map(len, answer.out.splitlines())) <= 80, answer.out


@pytest.mark.usefixtures("_narrow")
def test_lines_fit_with_long_names(ckpt: Call, tmp_path: Path) -> None:
    root = tmp_path / "long"
    with CheckpointManager(root, experiment="an-experiment-with-a-very-long-name-" * 4) as manager:
        state = {"a-branch-with-a-long-name": {"deeper/" * 12: {"weight": [1.0, 2.0]}}, "text": "long " * 50}
        metrics = {"a-metric-with-a-long-name-too-" * 2: 1.0, "loss": 0.123456789, "third": 3.0}
        manager.save(state, step=10**9, metrics=metrics, tags=["a-tag-that-is-long-" * 4], wait=True)
        manager.save({**state, "text": "short"}, step=10**9 + 1, metrics=metrics, wait=True)
    for arguments in [
        ("ls",),
        ("experiments",),
        ("stats",),
        ("tag",),
        ("forget", "--keep-last", "1", "--dry-run"),
    ]:
        answer = ckpt(*arguments, at=root)
        assert max(map(len, answer.out.splitlines())) <= 80, answer.out
    assert "1000000000" in ckpt("ls", at=root).out


@pytest.mark.usefixtures("_narrow")
def test_the_lines_of_the_log_fit(ckpt: Call, tmp_path: Path) -> None:
    root = tmp_path / "many"
    with CheckpointManager(root, experiment="x") as manager:
        metrics = {f"metric-{i}": i / 7 for i in range(20)}
        manager.save({"a": 1}, step=1, metrics=metrics, tags=["kept"], wait=True)
    line = ckpt("log", at=root).out.splitlines()[1]
    assert len(line) == 80
    assert line.endswith("…  (latest, kept)")


def test_documents_are_indented_for_people(ckpt: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_core.cli.output._is_terminal", lambda stream: True)
    monkeypatch.setenv("NO_COLOR", "1")
    answer = ckpt("experiments", "--json")
    assert answer.out.startswith('{\n  "version": 1,\n')
    assert answer.data["experiments"][0]["name"] == "digits"


@pytest.mark.usefixtures("_narrow")
def test_what_matters_least_gives_way(ckpt: Call) -> None:
    heading = ckpt("ls").out.splitlines()[0].split()
    assert {"ID", "EXPERIMENT", "STEP", "SAVED", "MARKS"} <= set(heading)
    assert "AT" not in heading


@pytest.mark.parametrize(
    ("arguments", "answer", "code", "left"),
    [
        ((), "y\n", 0, 4),
        ((), "n\n", 1, 10),
        ((), "\n", 1, 10),
        ((), "maybe\ny\n", 0, 4),
        ((), "", 1, 10),
        (("--yes",), None, 0, 4),
        (("-q", "-y"), None, 0, 4),
        (("--dry-run",), None, 0, 10),
        (("--json",), "n\n", 1, 10),
        (("--json",), "y\n", 0, 4),
    ],
)
def test_somebody_is_asked(
    arguments: tuple[str, ...],
    answer: str | None,
    code: int,
    left: int,
    store: Path,
    ckpt: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Output, "can_ask", property(lambda output: True))
    line = ["forget", "--store", str(store), "--keep-last", "1", *arguments]
    result = CliRunner().invoke(program, line, input=answer)
    assert result.exit_code == code, result.output
    assert ("Forget 6 checkpoints?" in result.stderr) is (answer is not None)
    assert "[y/N]" not in result.stdout
    assert len(ckpt("ls", "-q").out.split()) == left
    if code and "--json" not in arguments:
        assert "nothing was changed" in result.stderr


def test_prune_asks_as_well(store: Path, ckpt: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    ckpt("forget", "mnist@step=10")
    monkeypatch.setattr(Output, "can_ask", property(lambda output: True))
    refused = CliRunner().invoke(program, ["prune", "--now", "--store", str(store)], input="n\n")
    assert (refused.exit_code, "nothing was changed" in refused.stderr) == (1, True)
    assert list(store.glob("trash/*/*.json"))
    assert CliRunner().invoke(program, ["prune", "--now", "--store", str(store)], input="y\n").exit_code == 0
    assert not list(store.glob("trash/*/*.json"))
