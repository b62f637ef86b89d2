"""One flipped bit anywhere in a pack or a manifest is found by verify and by load, and is never data."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, CkptError, CorruptionError

OFFSETS = 1000


def equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("seed", [4711])
def test_1000_flipped_bits(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    states = {}
    with CheckpointManager(tmp_path, experiment="digits") as manager:
        state = {"w": rng.random((60, 50)), "b": rng.random(300).astype(np.float32), "n": 0}
        for step in range(1, 4):
            state = {**state, "b": rng.random(300).astype(np.float32), "n": step}
            states[step] = state
            manager.save(state, step=step, wait=True)
        files = sorted([*tmp_path.glob("packs/*/*.safetensors"), *tmp_path.glob("checkpoints/*/*.json")])
        assert len(files) == 6
        sizes = [path.stat().st_size for path in files]
        chance = random.Random(seed)
        for number in range(OFFSETS):
            # Every file gets its share, however small it is; offsets and bits are drawn.
            path = files[number % len(files)]
            offset, bit = chance.randrange(sizes[number % len(files)]), 1 << chance.randrange(8)
            where = f"seed {seed}: bit {bit} of byte {offset} of {path.name}"
            flip(path, offset, bit)
            report = manager.verify()
            assert not report.ok, where
            assert report.damaged, where
            found = 0
            for step, original in states.items():
                try:
                    loaded = manager.load(f"step={step}")
                except CorruptionError:
                    found += 1
                else:
                    assert equal(loaded, original), where
            assert found, where
            assert found >= len(report.damaged), where
            flip(path, offset, bit)
        assert manager.verify().ok


def flip(path: Path, offset: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ bit]))


def test_a_lost_file_is_found_too(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, experiment="digits") as manager:
        manager.save({"w": np.arange(1000)}, step=1, wait=True)
        next(tmp_path.glob("packs/*/*.safetensors")).unlink()
        assert not manager.verify().ok
        with pytest.raises(CkptError):
            manager.load()
