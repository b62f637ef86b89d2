"""What `import ckpt_core` drags in, asked of a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FRAMEWORKS = {"flax", "jax", "keras", "lightning", "pytorch_lightning", "tensorflow", "torch", "transformers"}
LATER = {"alembic", "cachetools", "click", "ml_dtypes", "rich", "safetensors", "sqlalchemy"}
LIMIT_SECONDS = 0.100

LIST_MODULES = "import json, sys; {}; print(json.dumps(sorted(sys.modules)))"
TIME_IMPORT = """
import numpy, time
begin = time.process_time()
import ckpt_core
print(time.process_time() - begin)
"""


def ask(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def packages_after(statement: str, folder: Path) -> set[str]:
    return {name.partition(".")[0] for name in json.loads(ask(LIST_MODULES.format(statement), folder))}


def test_the_question_is_able_to_see(tmp_path: Path) -> None:
    assert "sqlalchemy" in packages_after("import sqlalchemy", tmp_path)


@pytest.mark.parametrize("statement", ["import ckpt_core", "import ckpt_core; dir(ckpt_core)"])
def test_importing_the_core_imports_nothing_heavy(statement: str, tmp_path: Path) -> None:
    assert not packages_after(statement, tmp_path) & (FRAMEWORKS | LATER)


def test_using_the_core_imports_no_framework(tmp_path: Path) -> None:
    statement = "from ckpt_core import *"
    assert not packages_after(statement, tmp_path) & FRAMEWORKS


def test_importing_the_core_is_quick(tmp_path: Path) -> None:
    # Processor time, best of five: a busy machine must not fail this, a slow import must.
    seconds = min(float(ask(TIME_IMPORT, tmp_path)) for _ in range(5))
    assert seconds < LIMIT_SECONDS
