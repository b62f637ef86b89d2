"""The validation data of a fit: what it remembers from one evaluation to the next, and the iterator over it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import GeneratorType
from typing import Any

from ckpt_keras.sources import held_by

__all__ = ["Evaluation"]

_log = logging.getLogger("ckpt_core.keras")


class Evaluation:
    """What `fit` has in its variables `found` for its evaluations. `kind`: the class of its epoch iterators."""

    def __init__(self, model: Any, found: Mapping[str, Any], kind: Any) -> None:
        self._model = model
        self._found = {name: found.get(name) for name in _NAMES}
        self._kind = kind
        self._memory = held_by(self._found["validation_data"])

    def capture(self) -> dict[str, Any]:
        """How the data stands between two evaluations."""
        begun = getattr(self._model, "_eval_epoch_iterator", None) is not None
        return {"begun": begun, "memory": {**self._memory.read(), "orders": self._memory.read_orders()}}

    def begin(self, state: Mapping[str, Any]) -> None:
        """Makes the iterator, if there was one, as `fit` does for its first evaluation, and keeps it.

        To make it may fetch batches and draw for them: that was done before what is restored next.
        """
        found, model = self._found, self._model
        if not state["begun"] or found["validation_data"] is None:
            return
        options = {
            "x": found["val_x"], "y": found["val_y"], "sample_weight": found["val_sample_weight"],
            "batch_size": found["validation_batch_size"] or found["batch_size"],
            "steps_per_execution": model.steps_per_execution, "steps_per_epoch": found["validation_steps"],
            "shuffle": False,
        }  # fmt: skip
        if hasattr(model, "distribute_strategy"):
            options["distribute_strategy"] = model.distribute_strategy
        model._eval_epoch_iterator = self._kind(**options)
        if isinstance(found["val_x"], GeneratorType):
            _log.warning(
                "the validation data is a generator: it begins anew, and evaluations will not see what they would "
                "have seen. Give fit a PyDataset or arrays"
            )

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `capture` gave."""
        self._memory.write(state["memory"])


_NAMES = (
    "validation_data", "val_x", "val_y", "val_sample_weight", "validation_batch_size", "batch_size",
    "validation_steps",
)  # fmt: skip
