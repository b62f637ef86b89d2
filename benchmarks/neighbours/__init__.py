"""Other ways to save and load, each by its public API with its best documented options.

A neighbour says how it saves (until its files are durable), how long it keeps the training thread, and how it
loads. What it does not offer is None.
"""

from __future__ import annotations

from benchmarks.neighbours.contract import Neighbour
from benchmarks.neighbours.dcp import DCP_1, DCP_4
from benchmarks.neighbours.keras_weights import KERAS
from benchmarks.neighbours.moonclip import MOONCLIP
from benchmarks.neighbours.orbax import ORBAX_V0, ORBAX_V1
from benchmarks.neighbours.plain import LIGHTNING, SAFETENSORS, TORCH
from benchmarks.neighbours.torch_checkpointing import TORCH_CHECKPOINTING

__all__ = [
    "ALL", "DCP_1", "LIGHTNING", "MOONCLIP", "ORBAX_V0", "ORBAX_V1", "PLAIN", "TORCH", "TORCH_CHECKPOINTING",
    "Neighbour",
]  # fmt: skip

ALL = (
    TORCH, SAFETENSORS, DCP_1, DCP_4, LIGHTNING, ORBAX_V0, ORBAX_V1, KERAS, TORCH_CHECKPOINTING, MOONCLIP,
)  # fmt: skip

PLAIN = (TORCH, SAFETENSORS, DCP_1)
"""The quickest, which take little to import: for races beside the great one."""
