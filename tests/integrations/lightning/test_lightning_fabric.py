"""Fabric: the checkpointer of plain loops takes what Fabric has wrapped, and goes on exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contract.training import Training, assert_same_training

SCRIPT = Path(__file__).with_name("train_fabric.py")
PRELOAD = ("lightning.fabric",)


CASES = {
    "wrapped loader": ({}, "by fetching again and dropping it"),
    "loader of one's own": ({"wrapped": False, "workers": 2, "precision": "bf16-mixed"}, "by skipping to it"),
}


@pytest.mark.parametrize(("options", "way"), CASES.values(), ids=CASES.keys())
def test_killed_and_run_again(tmp_path: Path, options: dict[str, Any], way: str) -> None:
    reference = Training(SCRIPT, tmp_path / "reference", options, PRELOAD).complete(ours=False)
    job = Training(SCRIPT, tmp_path / "killed", options, PRELOAD)
    parts = [job.killed(batch=[0, 5]), job.run(fail=[1, 3]), job.killed(batch=[1, 7]), job.complete()]
    assert_same_training(reference, parts)
    assert [part.only("begin")["how"] for part in parts] == ["fresh", "resumed", "resumed", "resumed"]
    assert f"going to batch 3 {way}" in parts[2].output
    assert parts[2].only("begin")["step"] == 11, "the last good state before the exception"
