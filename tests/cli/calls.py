"""What the tests of the command share: a store to make, an answer to read, damage to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_core import CheckpointManager

__all__ = ["Answer", "Call", "damage", "ids", "make_store", "model", "train"]


@dataclass(frozen=True)
class Answer:
    """What one call gave."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert found["version"] == 1
        return found

    @property
    def data(self) -> Any:
        return self.document["data"]

    @property
    def error(self) -> dict[str, Any]:
        return self.document["error"]


def model(seed: int = 0, lr: float = 0.1) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    weight, bias = random.standard_normal((16, 8)).astype("f4"), random.standard_normal(8).astype("f4")
    moments = [random.standard_normal(8), random.standard_normal(8)]
    return {
        "model": {"fc.weight": weight, "fc.bias": bias},
        "optimizer": {"moments": moments, "lr": lr, "betas": (0.9, 0.999)},
        "config": {"lr": lr, "layers": [16, 8], "name": "digits"},
        "epoch": 0,
    }


def train(manager: CheckpointManager, state: dict[str, Any], steps: range, loss: float = 1.0) -> None:
    for step in steps:
        state["model"]["fc.bias"] = state["model"]["fc.bias"] + np.float32(loss)
        state["epoch"] = step // 100
        manager.log({"loss": loss / step}, step=step)
        manager.save(state, step=step, metrics={"val_loss": loss / step}, wait=True)


def make_store(root: Path) -> None:
    """digits: attempt 1 saves 100 to 400; attempt 2 goes on from 200 with 300 and 500; attempt 3 begins anew
    with 100. mnist: 10, 20 and 30 with two metrics. Tags and pins on both."""
    with CheckpointManager(root, experiment="digits") as manager:
        train(manager, model(), range(100, 401, 100))
        manager.tag("step=100", "warm")
        manager.pin("step=300")
    with CheckpointManager(root, experiment="digits") as manager:
        train(manager, manager.load("step=200"), range(300, 501, 200), loss=0.9)
        manager.tag("latest", "release-1")
    with CheckpointManager(root, experiment="digits") as manager:
        train(manager, model(seed=1, lr=0.01), range(100, 101), loss=0.8)
    with CheckpointManager(root, experiment="mnist") as manager:
        for step in (10, 20, 30):
            values = {"val_loss": 1 / step, "accuracy": step / 100}
            manager.save(model(seed=step), step=step, metrics=values, wait=True)
        manager.tag("step=20", "release-1")


Call = Callable[..., Answer]
"""Calls the command: `ckpt("ls", "--json")`."""


def ids(ckpt: Call, *arguments: str) -> list[str]:
    return ckpt("ls", "-q", *arguments).out.split()


def damage(store: Path, name: str = "*", offset: int = -1) -> Path:
    """Flips a bit in the first pack of an experiment; in its last byte unless told otherwise."""
    pack = sorted(store.glob(f"packs/{name}/*.safetensors"))[0]
    data = bytearray(pack.read_bytes())
    data[offset] ^= 1
    pack.write_bytes(data)
    return pack
