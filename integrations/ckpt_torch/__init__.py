"""Checkpoints for PyTorch: `TorchCheckpointer` for a plain training loop."""

from __future__ import annotations

from ckpt_torch.checkpointer import TorchCheckpointer
from ckpt_torch.loader import TrackedLoader
from ckpt_torch.rng import capture_rng, restore_rng
from ckpt_torch.weights import WeightsReport, fit_weights, load_weights

__all__ = [
    "TorchCheckpointer",
    "TrackedLoader",
    "WeightsReport",
    "capture_rng",
    "fit_weights",
    "load_weights",
    "restore_rng",
]
