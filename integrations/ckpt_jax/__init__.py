"""Checkpoints for JAX: `JaxCheckpointer` for a plain training loop, `OrbaxHandler` for those who stay with Orbax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckpt_jax.checkpointer import JaxCheckpointer
from ckpt_jax.loading import load
from ckpt_jax.pytrees import as_state
from ckpt_jax.weights import WeightsReport, load_weights

if TYPE_CHECKING:
    from ckpt_jax.orbax_handler import OrbaxHandler as OrbaxHandler

__all__ = ["JaxCheckpointer", "OrbaxHandler", "WeightsReport", "as_state", "load", "load_weights"]


def __getattr__(name: str) -> Any:
    if name != "OrbaxHandler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ckpt_jax.orbax_handler import OrbaxHandler  # Orbax takes two seconds to import, for those who use it

    return OrbaxHandler
