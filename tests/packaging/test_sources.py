"""What every file of the project keeps to, whoever wrote it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = [".ci", "benchmarks", "ckpt_core", "docs", "examples", "integrations", "tests"]
LONGEST = 410
LONGEST_TEST = 600
# Folders of somebody's machine. The bracket keeps this line from finding itself.
MACHINE_PATH = re.compile(r"(?<![\w.}])/(?:root|work)(?![\w.-])|/(?:home|Users)/\w|/tmp/[b]ash")
TEXT = {"", ".cfg", ".ini", ".json", ".mako", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}


def files() -> list[Path]:
    """Every text file of the project. Found by folder, since a checkout may lie where there is no git."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    found += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    return sorted(path for path in found if path.suffix in TEXT and path.name != ".git")


def modules(*folders: str) -> list[Path]:
    return [path for path in files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_files_are_found() -> None:
    names = {name_of(path) for path in files()}
    assert {"Makefile", "pyproject.toml", ".ci/run", "ckpt_core/errors.py", "README.md"} <= names


def test_no_module_is_too_long() -> None:
    lengths = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in modules(*FOLDERS)}
    limits = {name: LONGEST_TEST if name.startswith("tests/") else LONGEST for name in lengths}
    assert not {name: length for name, length in lengths.items() if length > limits[name]}


def test_every_module_says_what_lives_in_it() -> None:
    silent = [
        name_of(path)
        for path in modules("ckpt_core", "integrations")
        if not ast.get_docstring(ast.parse(path.read_bytes()))
    ]
    assert not silent


def test_no_file_names_a_machine() -> None:
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in files()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "names_one"),
    [
        ("see /" + "root/notes", True),
        ('open("/' + 'home/somebody/x")', True),
        ("/" + "tmp/bash-7", True),
        ("/" + "tmp/ckpt", False),
        ("run in /" + "work/here", True),
        ("{tox_root}/integrations", False),
        ("tree/root", False),
        ("a/work/b", False),
    ],
)
def test_a_machine_path_is_recognised(line: str, names_one: bool) -> None:
    assert bool(MACHINE_PATH.search(line)) is names_one
