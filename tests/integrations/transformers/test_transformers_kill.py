"""What the contract of all adapters does not ask of Trainer: its other ways to train, killed and started again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trainer_case import Pair

from contract.training import assert_same_training, resumed_steps

# 44 rows, 4 a batch, 2 batches an update: 6 updates an epoch, the last of one batch. Saved and evaluated at
# every second step, logged at every third. Words are hidden at random by the collator, from the global generator.
EPOCHS = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_strategy": "epoch",
    "eval_on_start": True,
}
CASES: dict[str, dict[str, Any]] = {
    "workers that live on, a generator of their own": {"workers": 2, "persistent": True, "own_rng": True},
    "a stream, buffers, max_steps": {"dataset": "stream", "norm": True, "args": {"max_steps": 12}},
    "adapters": {"peft": True},
    "bf16, by epochs": {"args": {**EPOCHS, "bf16": True, "lr_scheduler_type": "cosine"}},
    "gradients scaled, as with fp16": {"scaled": True},
    "each update one batch, a policy": {"accumulate": 1, "samples": 24, "callback": {"every_n_steps": 3}, "own_rng": True},
    "the best only": {"args": {"save_strategy": "best"}},
    "Trainer saves": {"callback": {"ingest": True}},
}  # fmt: skip


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_killed_and_started_again_it_is_the_same_training(tmp_path: Path, options: dict[str, Any]) -> None:
    pair = Pair(tmp_path, options)
    parts = [pair.job.killed(step=7, settled=True), pair.job.killed(step=9), pair.job.complete()]
    assert_same_training(pair.reference, parts)
    steps = resumed_steps(parts)
    assert 0 < steps[0] <= steps[1] <= 9
    # Trainer itself writes nothing, unless it is to.
    assert bool(parts[-1].only("folders")["names"]) == ("ingest" in options.get("callback", {}))
