"""The promises of every adapter, kept by Keras' on the backend that is set; and what BackupAndRestore does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from contract.adapter import AdapterContract, NativeMeasurement
from contract.training import Training, assert_same_training

BACKEND = os.environ["KERAS_BACKEND"]
SCRIPT = Path(__file__).with_name("fit_digits_keras.py")
PRELOAD = ("keras", "ckpt_keras.callback", "tensorflow")  # the last if it is there: Keras seeds it, too
# Seven batches an epoch, an evaluation after each, a save at every third step and at every epoch's end.
OPTIONS: dict[str, Any] = {"data": "loader", "workers": 2} if BACKEND == "torch" else {"data": "dataset"}
KILLS = {
    "first step": {"batch": [0, 0]},
    "middle of an epoch": {"batch": [1, 3]},
    "evaluation due": {"evaluate": [1, 2]},
    "last step of an epoch": {"batch": [1, 6]},
    "boundary of epochs": {"epoch": 2},
    "inside a save": {"fsync": 25},
}
RAISES = {"raise": [1, 3]}
TERMINATES = {"signal": [1, 3]}
SECOND = {"experiment": "second", "every_n_steps": 5}
NATIVE_KILLS = {**KILLS, "inside a save": {"fsync": 4}}


class TestContract(AdapterContract):
    adapter = f"Keras ({BACKEND})"
    script = SCRIPT
    preload = PRELOAD
    options = OPTIONS
    kills = KILLS
    raises = RAISES
    good_step = 10
    terminates = TERMINATES
    terminated_step = 11
    spoils = ("rng", "data", "callbacks", "optimizer", "seeds", "metrics")
    second = SECOND
    full = 150_000


def test_worker_processes(tmp_path: Path) -> None:
    """Two processes draw the masks: by chance, as Keras has it; here the same in each run."""
    options = {**OPTIONS, "data": "dataset", "workers": 2, "processes": True}
    whole = Training(SCRIPT, tmp_path / "whole", options, PRELOAD).complete()
    job = Training(SCRIPT, tmp_path / "killed", options, PRELOAD)
    parts = [job.killed(**KILLS["middle of an epoch"]), job.complete()]
    assert_same_training(whole, parts)
    assert parts[1].only("begin")["step"] == 9
    assert "going to batch 2 by skipping to it" in parts[1].output


class TestNative(NativeMeasurement):
    adapter = f"Keras BackupAndRestore ({BACKEND})"
    script = SCRIPT
    preload = PRELOAD
    options = OPTIONS
    kills = NATIVE_KILLS
    # It goes back to the beginning of the epoch, and shuffles anew.
    expected = dict.fromkeys(KILLS, "other data from there on") | {"first step": "exact"}
