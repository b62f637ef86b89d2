"""What every adapter promises, of the plain PyTorch loop; and what the recipe of PyTorch's tutorials does."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from contract.adapter import AdapterContract, NativeMeasurement

SCRIPT = Path(__file__).with_name("train_loop.py")
OPTIONS = {
    "workers": 2, "augment": "globals", "mask": True, "scheduler": "multistep", "patience": 9, "evaluate_every": 3,
}  # fmt: skip
LAST = 7  # of the batches of an epoch, from 0: each has 8 samples of 60
KILLS = {
    "first step": {"batch": [0, 0]},
    "middle of an epoch": {"batch": [1, 4]},
    "evaluation due": {"evaluation": [1, 5]},
    "last step of an epoch": {"batch": [1, LAST]},
    "boundary of epochs": {"boundary": [2, 0]},
    "inside a save": {"fsync": 35},
}


class TestContract(AdapterContract):
    adapter = "PyTorch loop"
    script = SCRIPT
    options: ClassVar = OPTIONS
    kills: ClassVar = KILLS
    raises: ClassVar = {"raise": [1, 5]}
    good_step = 13
    terminates: ClassVar = {"signal": [[1, 2], "SIGTERM"]}
    terminated_step = 11
    spoils: ClassVar = ("rng", "data", "optimizer", "scheduler", "state", "weights", "buffers")
    full = 120_000


class TestNative(NativeMeasurement):
    adapter = "torch.save, as PyTorch's tutorials say"
    script = SCRIPT
    options: ClassVar = OPTIONS
    kills: ClassVar = KILLS
    expected: ClassVar = {
        "first step": "exact",
        "middle of an epoch": "other data from there on",
        "evaluation due": "other data from there on",
        "last step of an epoch": "other data from there on",
        "boundary of epochs": "other data from there on",
        "inside a save": "does not run again",
    }
