"""The example of a backend of one's own runs, and keeps the contract."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from ckpt_core import StorageBackend
from ckpt_core.testing import BackendContract

EXAMPLE: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "custom_backend.py"))


class TestExample(BackendContract):
    def make_backend(self) -> StorageBackend:
        backend: StorageBackend = EXAMPLE["NpyFolder"]()
        return backend


def test_it_runs(capsys: Any) -> None:
    EXAMPLE["main"]()
    assert "verified: True" in capsys.readouterr().out
