"""Checkpoints for HuggingFace's Trainer: `CheckpointCallback`, and the folders that Trainer itself writes."""

from __future__ import annotations

from ckpt_core.fitting import WeightsReport
from ckpt_transformers.callback import CheckpointCallback
from ckpt_transformers.folder import materialize
from ckpt_transformers.ingestion import ingest
from ckpt_transformers.weights import load_weights

__all__ = ["CheckpointCallback", "WeightsReport", "ingest", "load_weights", "materialize"]
