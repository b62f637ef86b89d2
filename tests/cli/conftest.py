"""A real store for the tests of the command, made once and copied; and ways to call the command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ckpt_core.cli.program import program
from cli.calls import Answer, Call, make_store

ENVIRONMENT = ("CKPT_STORE", "CKPT_CATALOG", "CKPT_CONFIG", "NO_COLOR", "_CKPT_COMPLETE")


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine") / "store"
    make_store(root)
    return root


@pytest.fixture
def store(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the store, for one test."""
    shutil.copytree(pristine, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def ckpt(store: Path) -> Call:
    """Calls the command in this process, on the copied store unless the test names another."""

    def call(*arguments: str | Path, at: Path | str | None = store) -> Answer:
        line = [str(argument) for argument in arguments]
        if at is not None:
            line[1:1] = ["--store", str(at)]
        result = CliRunner().invoke(program, line)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def process(store: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Calls the command as a process of its own."""

    def call(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("CKPT_", "_CKPT"))
        }
        environment |= {"CKPT_STORE": str(store)} | settings.pop("environment", {})
        return subprocess.run(
            [sys.executable, "-m", "ckpt_core", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **settings,
        )

    return call
