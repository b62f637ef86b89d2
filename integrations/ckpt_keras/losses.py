"""The learning rate of a Keras model, and the loss of one batch: Keras tells the mean over the epoch so far."""

from __future__ import annotations

from typing import Any

import keras

from ckpt_keras.codec import host_array

__all__ = ["BatchLoss", "learning_rate_of"]


def learning_rate_of(model: Any) -> float | None:
    """What the next step will use; None for a model without an optimizer."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return None
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
    rate = optimizer.learning_rate
    return float(host_array(rate.value if isinstance(rate, keras.Variable) else rate))


class BatchLoss:
    """`mean` over `count` batches of this epoch is what was told last. Exact where all batches are of one size."""

    def __init__(self, mean: float = 0.0, count: int = 0) -> None:
        self._mean = mean
        self._count = count

    @property
    def state(self) -> tuple[float, int]:
        """What the constructor takes, to go on from here."""
        return self._mean, self._count

    def note(self, mean: float | None, count: int) -> float | None:
        """The loss of the batches since the last call, of which `count` are over now; None where nothing is told."""
        if mean is None or count <= self._count:
            return None
        loss = (mean * count - self._mean * self._count) / (count - self._count)
        self._mean, self._count = mean, count
        return loss
