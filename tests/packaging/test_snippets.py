"""The Python in the documents runs. One document is one script, run in an empty folder.

A document that needs a framework says so at its head, `<!-- needs: torch, lightning -->`, and runs where
those are installed. A block marked `python fragment` is compiled, not run.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {"torch", "lightning", "sklearn", "transformers", "jax", "keras", "tensorflow", "orbax"}
FRAMEWORKS |= {"pandas", "matplotlib", "fastapi", "uvicorn"}  # of the extras
FRAMEWORKS |= {"mlflow", "wandb", "tensorboard", "prometheus_client", "opentelemetry"}  # of the links
NEEDS = re.compile(r"<!-- needs: ([\w, ]+) -->")
FENCE = re.compile(r"(?P<indent> *)(?P<fence>`{3,})(?P<info>[^`]*)")
KINDS = {"python": True, "python fragment": False}


@dataclass(frozen=True)
class Block:
    """One fenced block of Python: the line its code begins on (from 1), and whether it is run."""

    line: int
    code: str
    runs: bool

    def padded(self) -> str:
        """The code at its own line numbers, so that an error names the document's line."""
        return "\n" * (self.line - 1) + self.code


@dataclass(frozen=True)
class Document:
    """One Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix() if self.path.is_relative_to(ROOT) else self.path.name

    @cached_property
    def lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines()

    @property
    def needs(self) -> set[str]:
        found = NEEDS.search("\n".join(self.lines[:5]))
        return set(re.split(r"[, ]+", found[1])) if found else set()

    @cached_property
    def blocks(self) -> list[Block]:
        found: list[Block] = []
        opening: re.Match[str] | None = None
        begin = 0
        for index, line in enumerate(self.lines):
            if opening is None:
                opening, begin = FENCE.fullmatch(line), index + 1
            elif line.strip() == opening["fence"]:
                info, indent = opening["info"].strip(), len(opening["indent"])
                if info.startswith("py"):
                    assert info in KINDS, f"{self.name}:{begin}: write one of {sorted(KINDS)}, not {info!r}"
                    code = "\n".join(each[indent:] for each in self.lines[begin:index])
                    found.append(Block(begin + 1, code + "\n", KINDS[info]))
                opening = None
        assert opening is None, f"{self.name}:{begin}: this fence is never closed"
        return found

    def script(self) -> str:
        """All blocks that run, each at its own line numbers."""
        script: list[str] = []
        for block in self.blocks:
            if block.runs:
                script += [""] * (block.line - 1 - len(script)) + block.code.splitlines()
        return "\n".join(script) + "\n"


DOCUMENTS = [Document(path) for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]]
# Not a skip: a document that cannot run here belongs to another environment, which runs it.
RUNNABLE = [
    document
    for document in DOCUMENTS
    if any(block.runs for block in document.blocks)
    and all(importlib.util.find_spec(need) for need in document.needs)
]


def run(document: Document, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the document's script in an empty folder, as a person without any settings."""
    home, work = folder / "home", folder / "work"
    home.mkdir()
    work.mkdir()
    script = folder / f"document_{document.path.stem}.py"
    script.write_text(document.script(), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "CKPT_"))}
    return subprocess.run(
        [sys.executable, script],
        cwd=work,
        env=environment | {"HOME": str(home), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_document_is_well_formed(document: Document) -> None:
    assert document.needs <= FRAMEWORKS, f"{document.name} needs something that no environment has"
    for block in document.blocks:
        compile(block.padded(), document.name, "exec")


@pytest.mark.parametrize("document", RUNNABLE, ids=lambda document: document.name)
def test_document_runs(document: Document, tmp_path: Path) -> None:
    done = run(document, tmp_path)
    assert done.returncode == 0, f"{document.name} (line numbers are the document's):\n{done.stdout}"


def test_blocks_share_names_and_errors_name_the_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- needs: torch, lightning -->\n# Page\n```python\nnumber = 1\n```\n"
        "```bash\nfalse\n```\n- in a list:\n  ```python\n  print(number)\n  ```\n"
        "```python fragment\nraise ValueError('not run')\n```\n```python\nraise ValueError('run')\n```\n"
    )
    document = Document(page)
    assert document.needs == {"torch", "lightning"}
    assert [(block.line, block.runs) for block in document.blocks] == [
        (4, True),
        (11, True),
        (14, False),
        (17, True),
    ]
    done = run(document, tmp_path)
    assert done.returncode == 1
    assert done.stdout.startswith("1\n")
    assert "line 17" in done.stdout
    assert "not run" not in done.stdout


@pytest.mark.parametrize("text", ["```python\nnever closed", "```python title=x\n```"])
def test_a_malformed_document_is_refused(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(AssertionError, match=r"page\.md:1"):
        _ = Document(page).blocks
