"""The promises of every adapter, kept by Lightning's; and what Lightning's own checkpoints do in the same cases."""

from __future__ import annotations

from pathlib import Path

from contract.adapter import AdapterContract, NativeMeasurement

SCRIPT = Path(__file__).with_name("train_lightning.py")
PRELOAD = ("lightning.pytorch", "torchmetrics", "ckpt_lightning")
# Eight batches an epoch, an evaluation after four and after eight, a save at every second step.
OPTIONS = {
    "workers": 2, "augment": "globals", "mask": True, "scheduler": "step", "patience": 9, "val_check": 0.5,
    "metrics": True, "monitor": "val_loss", "noise": 0.0,
}  # fmt: skip
KILLS = {
    "first step": {"batch": [0, 0]},
    "middle of an epoch": {"batch": [0, 6]},
    "evaluation due": {"validating": 12},
    "last step of an epoch": {"batch": [1, 7]},
    "boundary of epochs": {"epoch": 2},
    "inside a save": {"fsync": 35},
}
NATIVE_KILLS = {**KILLS, "inside a save": {"fsync": 5}}
NATIVE = {**dict.fromkeys(KILLS, "other data from there on"), "first step": "exact"}
RAISES = {"raise_in_step": [1, 5]}
TERMINATES = {"signal": [[1, 2], "SIGTERM"]}
SECOND = {"experiment": "second", "every_n_steps": 5}


class TestContract(AdapterContract):
    adapter = "Lightning"
    script = SCRIPT
    preload = PRELOAD
    options = OPTIONS
    kills = KILLS
    raises = RAISES
    good_step = 13
    terminates = TERMINATES
    terminated_step = 11
    spoils = ("rng", "logged", "module", "data", "counters")
    second = SECOND
    full = 300_000


class TestNative(NativeMeasurement):
    adapter = "Lightning ModelCheckpoint"
    script = SCRIPT
    preload = PRELOAD
    options = OPTIONS
    kills = NATIVE_KILLS
    expected = NATIVE
