"""Checkpoints for PyTorch: `TorchCheckpointer` for a plain training loop, `TorchBackend` for files of torch.save."""

from __future__ import annotations

from ckpt_torch.backend import TorchBackend
from ckpt_torch.checkpointer import TorchCheckpointer
from ckpt_torch.loader import TrackedLoader
from ckpt_torch.rng import capture_rng, restore_rng
from ckpt_torch.weights import WeightsReport, fit_weights, load_weights

__all__ = [
    "TorchBackend",
    "TorchCheckpointer",
    "TrackedLoader",
    "WeightsReport",
    "capture_rng",
    "fit_weights",
    "load_weights",
    "restore_rng",
]
