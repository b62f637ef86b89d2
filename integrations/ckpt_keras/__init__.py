"""Checkpoints for Keras 3, on each of its backends: `CheckpointCallback` for `model.fit`, `load_weights`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpt_keras.callback import CheckpointCallback as CheckpointCallback
    from ckpt_keras.weights import load_weights as load_weights

__all__ = ["CheckpointCallback", "load_weights"]

_HOME = {"CheckpointCallback": "callback", "load_weights": "weights"}


def __getattr__(name: str) -> Any:
    # On first use: by then the program has said which backend Keras is to have.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    try:
        module = importlib.import_module(f"ckpt_keras.{_HOME[name]}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("ckpt_"):
            raise
        from ckpt_core import MissingExtraError

        raise MissingExtraError(
            f"Keras or its backend is not installed ({error}): pip install 'ckpt-core[keras]', and jax, torch or "
            "tensorflow",
            extra="keras",
        ) from error
    return getattr(module, name)
