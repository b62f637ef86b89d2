"""Checkpoints for HuggingFace's Trainer: `CheckpointCallback`, and the folders that Trainer itself writes."""

from __future__ import annotations

from ckpt_transformers.callback import CheckpointCallback
from ckpt_transformers.fitting import WeightsReport, load_weights
from ckpt_transformers.folder import materialize
from ckpt_transformers.ingestion import ingest

__all__ = ["CheckpointCallback", "WeightsReport", "ingest", "load_weights", "materialize"]
