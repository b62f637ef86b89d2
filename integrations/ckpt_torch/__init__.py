"""Checkpoints for PyTorch: `TorchCheckpointer` for a plain training loop."""

from __future__ import annotations

from ckpt_torch.checkpointer import TorchCheckpointer
from ckpt_torch.loader import TrackedLoader
from ckpt_torch.rng import capture_rng, restore_rng

__all__ = ["TorchCheckpointer", "TrackedLoader", "capture_rng", "restore_rng"]
