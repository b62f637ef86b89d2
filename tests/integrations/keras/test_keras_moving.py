"""Files of `model.save_weights` in and out, read by Keras itself, to the last bit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from ckpt_core import CheckpointManager, CorruptionError, StateError, export_checkpoint, import_checkpoint
from ckpt_core.backends import room
from ckpt_core.stores import MemoryStore
from ckpt_core.testing import same_state
from ckpt_keras.h5 import WeightsFile
from contract.anonymous import taken_by_import

# What Keras itself does where it saves weights, and numpy has since found fault with.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def model(seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    layers = [
        keras.layers.Dense(3),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(2, dtype="bfloat16"),
    ]
    made = keras.Sequential([keras.layers.Input((4,)), *layers])
    made.compile("adam", "mse")
    return made


def test_there_and_back(tmp_path: Path) -> None:
    one, other = model(1), model(2)
    one.save_weights(tmp_path / "theirs.weights.h5")
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        import_checkpoint(manager, tmp_path / "theirs.weights.h5")
        done = export_checkpoint(manager, "latest", tmp_path / "ours.weights.h5")
        assert done.format == "keras"
        part = manager.load(include="layers/dense")
        assert (part["layers"]["dense"]["vars"]["0"].shape) == (4, 3)
    assert not same_state(list(one.weights), list(other.weights))
    other.load_weights(tmp_path / "ours.weights.h5")
    assert same_state(list(one.weights), list(other.weights))


def test_what_is_no_file_of_weights_is_told(tmp_path: Path) -> None:
    with CheckpointManager(MemoryStore(), experiment="x") as manager:
        manager.save({"model": {"weights": {"w": np.ones(2)}, "order": ["w"]}}, step=1, wait=True)
        with pytest.raises(StateError, match="load_weights"):
            export_checkpoint(manager, "latest", tmp_path / "x.weights.h5")
        manager.save({"w": np.ones(2), "epoch": 3}, step=2, wait=True)
        with pytest.raises(StateError, match="dicts of arrays"):
            export_checkpoint(manager, "latest", tmp_path / "x.weights.h5")
    (tmp_path / "bad.weights.h5").write_bytes(b"hello")
    with pytest.raises(CorruptionError):
        WeightsFile().load_checkpoint(tmp_path / "bad.weights.h5")


def test_a_file_does_not_lead_to_others(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["w"] = np.ones(2)
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        file["w"] = h5py.ExternalLink("secret.h5", "/w")
    with pytest.raises(CorruptionError, match="link"):
        WeightsFile().load_checkpoint(tmp_path / "x.weights.h5")
    with h5py.File(tmp_path / "y.weights.h5", "w") as file:
        file.create_dataset("w", (8,), "u1", external=[(str(tmp_path / "secret.h5"), 0, 8)])
    with pytest.raises(CorruptionError):
        WeightsFile().load_checkpoint(tmp_path / "y.weights.h5")
    with h5py.File(tmp_path / "z.weights.h5", "w") as file:
        file.create_dataset("w", (1 << 40,), "f8", chunks=(1024,))
    with pytest.raises(CorruptionError, match="claims"):
        WeightsFile().load_checkpoint(tmp_path / "z.weights.h5")


def packed(path: Path, values: int) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays as h5py can store them, and Keras does not: cut up, and compressed."""
    arrays = {f"w{n}": (np.arange(values) // 8 + n).reshape(2, -1) for n in range(12)}
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=True, compression=None if name == "w1" else "lzf")
        file["half"] = np.ones(3, "f2")
        file["one"] = np.float32(2)
        file["none"] = np.empty((0, 3))
    found = arrays | {"half": np.ones(3, "f2"), "one": np.array(2, "f4"), "none": np.empty((0, 3))}
    return dict(sorted(found.items()))


def test_compressed_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_IN_MEMORY", 0)
    arrays = packed(tmp_path / "x.weights.h5", 1000)
    viewed = WeightsFile().view_checkpoint(tmp_path / "x.weights.h5")
    assert same_state(viewed, arrays)
    assert same_state(WeightsFile().load_checkpoint(tmp_path / "x.weights.h5"), arrays)
    viewed["w0"] += 1  # it is the caller's own
    assert same_state(WeightsFile().load_checkpoint(tmp_path / "x.weights.h5"), arrays)


@pytest.mark.skipif(sys.platform != "linux", reason="what memory is of no file, only Linux tells")
def test_an_import_of_a_compressed_file_takes_no_memory_for_the_whole(tmp_path: Path) -> None:
    small, large = tmp_path / "small.weights.h5", tmp_path / "large.weights.h5"
    packed(small, 1000)
    packed(large, 1 << 20)
    assert taken_by_import("keras", small, large, tmp_path / "store") < 48 << 20  # of 96


def test_groups_that_stand_twice_are_not_read_for_ever(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        group = file.create_group("layers")
        for _ in range(40):  # 2**40 ways to the last
            group["a"] = group["b"] = inner = file.create_group(None)
            group = inner
    with pytest.raises(CorruptionError, match="more than once"):
        WeightsFile().load_checkpoint(tmp_path / "x.weights.h5")
