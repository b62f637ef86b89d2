"""A Trainer killed at any instant and started again by the same command ends as if it had never been killed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from trainer_case import Pair, training

from contract.training import Ended, assert_same_training, resumed_steps

# 44 rows, 4 a batch, 2 batches an update: 6 updates an epoch, the last of one batch. Saved and evaluated at
# every second step, logged at every third. Words are hidden at random by the collator, from the global generator.
EPOCHS = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_strategy": "epoch",
    "eval_on_start": True,
}
STOPPED = {"stop": 3, "epochs": 3.0}


def test_killed_anywhere_it_is_the_same_training(tmp_path: Path) -> None:
    pair = Pair(tmp_path, {})
    parts = [
        pair.job.killed(step=0),  # the first one
        pair.job.killed(saved=2),
        pair.job.killed(step=3),  # in the middle of the epoch
        pair.job.killed(evaluation=4),
        pair.job.killed(step=5),  # the last one of the epoch
        pair.job.killed(epoch_end=6),
        pair.job.killed(saved=6),
        pair.job.killed(epoch_begin=6),
        pair.job.killed(fsync=4),  # inside of a save
        pair.job.complete(),
    ]
    assert_same_training(pair.reference, parts)
    steps = resumed_steps(parts)
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 6)
    assert parts[-1].only("folders")["names"] == []  # Trainer itself wrote none


CASES: dict[str, dict[str, Any]] = {
    "workers": {"workers": 2},
    "early stopping": STOPPED,
    "workers that live on, a generator of their own": {"workers": 2, "persistent": True, "own_rng": True},
    "a stream, buffers, max_steps": {"dataset": "stream", "norm": True, "args": {"max_steps": 12}},
    "adapters": {"peft": True},
    "bf16, by epochs": {"args": {**EPOCHS, "bf16": True, "lr_scheduler_type": "cosine"}},
    "each update one batch, a policy": {"accumulate": 1, "samples": 24, "callback": {"every_n_steps": 3}, "own_rng": True},
    "the best only": {"args": {"save_strategy": "best"}},
    "Trainer saves": {"callback": {"ingest": True}},
    "two callbacks": {"second": {"experiment": "ends", "every_n_epochs": 1}},
}  # fmt: skip


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_killed_and_started_again_it_is_the_same_training(tmp_path: Path, options: dict[str, Any]) -> None:
    pair = Pair(tmp_path, options)
    late = 7 if "stop" in options else 9
    parts = [
        pair.job.killed(step=5),
        pair.job.killed(saved=6),
        pair.job.killed(step=late),
        pair.job.complete(),
    ]
    assert_same_training(pair.reference, parts)
    steps = resumed_steps(parts)
    assert steps == sorted(steps)
    assert steps[-1] > 0


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, Ended]:
    """A training with early stopping, killed at the step after a save that lies between two logs."""
    pair = Pair(tmp_path_factory.mktemp("spoilt"), STOPPED)
    return pair, pair.job.killed(saved=4)


@pytest.mark.parametrize(
    "what", ["weights", "optimizer", "scheduler", "rng", "data", "sums", "callbacks", "logs", "nothing"]
)
def test_what_is_not_restored_shows(killed: tuple[Pair, Ended], tmp_path: Path, what: str) -> None:
    pair, first = killed
    shutil.copytree(pair.job.folder, tmp_path / what)
    last = training(tmp_path / what, pair.job.options).complete(spoil=what)
    if what == "nothing":
        assert_same_training(pair.reference, [first, last])
    else:
        with pytest.raises(AssertionError):
            assert_same_training(pair.reference, [first, last])
