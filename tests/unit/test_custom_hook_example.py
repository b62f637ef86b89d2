"""The example of a hook of one's own: a package that offers it, a file that names it, a training that knows of neither."""

from __future__ import annotations

import runpy
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, Session, UsageError
from ckpt_core.hooks import make_hook
from ckpt_core.hooks.configured import read_hook_file

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_hook"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example, installed as pip would leave it, and the working directory."""
    folder = shutil.copytree(EXAMPLE, tmp_path / "example")
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / "acme_hooks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    entries = project["entry-points"]["ckpt_core.hooks"]
    (info / "entry_points.txt").write_text(
        "[ckpt_core.hooks]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)
    monkeypatch.delenv("CKPT_CONFIG", raising=False)
    (folder / "ckpt.toml").chmod(0o644)
    return folder


def test_the_training_is_told_no(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(folder / "train.py"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["1 saved", "2 saved", "3 saved"]
    assert "vetoed by write-budget: 2.4 MB are written, of 2" in lines[3]
    assert len((folder / "events.jsonl").read_text(encoding="utf-8").splitlines()) >= 3


def test_what_it_counts_goes_on_after_a_resume(folder: Path) -> None:
    counts: list[Any] = []
    for _ in range(2):
        hook: Any = make_hook("write-budget", {"megabytes": 100})
        with CheckpointManager("s", experiment="e", hooks=[hook], hooks_file=False) as manager:
            session = Session(manager, signals=())
            session.resume()
            session.begin(session.resumption.step)
            counts.append(hook.written)
            for step in range(session.resumption.step + 1, session.resumption.step + 3):
                session.step_end(step)
                session.request("a test")
                handle = session.safe_point(step, 0, lambda: {"w": np.random.default_rng().random(1000)})
                assert handle is not None
                handle.result()
                manager.wait()
            session.close()
    assert counts[0] == 0
    assert counts[1] > 8000  # of the first save: the second one's own bytes are known when it is written
    assert hook.written > counts[1] + 16_000


def test_its_options_are_checked(folder: Path) -> None:
    (folder / "ckpt.toml").write_text('[[hooks]]\nuse = "write-budget"\nmegabytes = 0\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"ckpt.toml: hooks\[1\].*megabytes is 0.0; give a number above 0"):
        read_hook_file(folder / "ckpt.toml").make_all()
