"""The contract of all adapters, kept by Trainer's; and what Trainer's own checkpoints do in the same cases."""

from __future__ import annotations

from typing import ClassVar

from trainer_case import PRELOAD, SCRIPT

from contract.adapter import AdapterContract, NativeMeasurement

# 44 rows, 4 a batch, 2 batches an update: 6 updates an epoch, the last of one batch. Saved and evaluated at every
# second step, logged at every third. Workers swap words at random, the collator hides some at random.
OPTIONS = {"workers": 2, "augment": True, "epochs": 3.0, "stop": [7, 0.05]}
KILLS = {
    "first step": {"made": 1},
    "middle of an epoch": {"step": 9, "settled": True},
    "evaluation due": {"evaluation": 10},
    "last step of an epoch": {"made": 12},
    "boundary of epochs": {"epoch_begin": 12},
    "inside a save": {"fsync": 43},
}


class TestContract(AdapterContract):
    adapter = "HuggingFace Trainer"
    script = SCRIPT
    preload = PRELOAD
    options = OPTIONS
    kills = KILLS
    raises: ClassVar = {"raise": 9}
    good_step = 9
    terminates: ClassVar = {"signal": [8, "SIGTERM"]}
    terminated_step = 9
    spoils = ("weights", "optimizer", "scheduler", "rng", "data", "sums", "callbacks", "logs")
    metric = "eval_loss"
    full = 800_000


class TestNative(NativeMeasurement):
    adapter = "Trainer's own checkpoints"
    script = SCRIPT
    preload = PRELOAD
    options = OPTIONS
    kills: ClassVar = {**KILLS, "inside a save": {"folder": 8}}
    expected: ClassVar = {
        "first step": "exact, from the start",
        "middle of an epoch": "same data, other weights",
        "evaluation due": "same data, other weights",
        "last step of an epoch": "same data, other weights",
        "boundary of epochs": "same weights, other logs, loss",
        "inside a save": "does not run again",
    }
