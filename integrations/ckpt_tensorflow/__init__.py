"""TensorFlow's variables, tensors and modules as parts of a state; weights for a model that has changed."""

from __future__ import annotations

from ckpt_tensorflow.trackables import variables_of
from ckpt_tensorflow.weights import WeightsReport, load_weights

__all__ = ["WeightsReport", "load_weights", "variables_of"]
