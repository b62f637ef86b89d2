"""Draws tracking.svg: three trainings that differ in one value, as a comparison plots them."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import matplotlib as mpl

from ckpt_core import CheckpointManager, ExperimentTracker

HERE = Path(__file__).parent


def main() -> None:
    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "tracking", "figure.figsize": (7, 3), "font.size": 9})
    with tempfile.TemporaryDirectory() as root:
        for name, lr in (("slow", 0.01), ("middling", 0.03), ("fast", 0.1)):
            with CheckpointManager(root, experiment=name, config={"optimizer": {"lr": lr}}) as manager:
                weight = 5.0
                for step in range(200):
                    weight -= lr * 2 * weight + 0.02 * math.sin(step)
                    manager.log({"loss": weight**2}, step=step)
        with ExperimentTracker(root) as tracker:
            axes = tracker.compare("slow", "middling", "fast").plot("loss")
            axes.set_yscale("log")
            axes.figure.tight_layout()
            axes.figure.savefig(HERE / "tracking.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
