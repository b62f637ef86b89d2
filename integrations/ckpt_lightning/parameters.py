"""Hyperparameters as far as they can be stored: nothing of a resume depends on them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ckpt_core import StateError
from ckpt_core.tree import flatten, registry

__all__ = ["Parameters"]

_log = logging.getLogger("ckpt_core.lightning")
_KEYS = ("hyper_parameters", "datamodule_hyper_parameters")


class Parameters:
    """Makes the hyperparameters of Lightning's checkpoints storable; says once what it turned into text.

    Lightning pickles them, whatever they are: modules, functions, classes. Nothing here is pickled.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()

    def storable(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The checkpoint with those hyperparameters that have no codec as their `repr`."""
        changed = {key: self._each(key, state[key]) for key in _KEYS if key in state}
        return {**state, **changed}

    def _each(self, key: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        kept = {}
        for name, value in parameters.items():
            try:
                flatten(value, registry)
                kept[name] = value
            except StateError:
                kept[name] = repr(value)
                self._tell(f"{key}/{name}", value)
        return kept

    def _tell(self, path: str, value: Any) -> None:
        if path not in self._told:
            self._told.add(path)
            _log.warning("%s is a %s and is saved as text", path, type(value).__name__)
