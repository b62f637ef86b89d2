"""The weights of the model in training as state and back: whole models, and PEFT's adapters alone.

Tied weights are one tensor under several names, which the engine stores once. Models that have changed since
are `fitting.py`'s, files `folder.py`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ckpt_transformers.fitting import fit_weights, is_peft, restore_adapters

__all__ = ["ModelWeights"]

_log = logging.getLogger("ckpt_core.transformers")


class ModelWeights:
    """The weights of one model during one training.

    Of a PEFT model is saved what is trained and what has changed since this was made: its frozen weights are
    there before any checkpoint is. A tensor that was written to counts as changed, whatever was written.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._peft = is_peft(model)
        self._begin = {name: (tensor, tensor._version) for name, tensor in self._left_out()}
        self._with_embeddings: bool | None = None

    def capture(self) -> dict[str, Any]:
        """`model`: the weights by name. `buffers`: those that a model keeps out of its state, if they changed.
        `adapters`: the same tensors again by PEFT's names. Tensors in it are the live ones."""
        changed = {
            name: tensor.detach() for name, tensor in self._left_out() if self._has_changed(name, tensor)
        }
        if not self._peft:
            return {"model": dict(self._model.state_dict()), "buffers": changed}
        trained = {name: each.detach() for name, each in self._model.named_parameters() if each.requires_grad}
        return {"model": trained, "buffers": changed, "adapters": self._adapters()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `capture` gave. Raises StateMismatchError with all that does not fit."""
        if state.get("model"):
            fit_weights(self._model, state["model"])
        else:
            restore_adapters(self._model, state["adapters"])
        there = dict(self._left_out())
        with torch.no_grad():
            for name, saved in state.get("buffers", {}).items():
                if name in there and there[name].shape == saved.shape:
                    there[name].copy_(saved)
                else:
                    _log.warning("%s is in the checkpoint, but cannot be restored here", name)

    def _has_changed(self, name: str, tensor: torch.Tensor) -> bool:
        before, version = self._begin.get(name, (None, -1))
        return before is not tensor or version != tensor._version

    def _left_out(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What is saved only if it changed."""
        for prefix, module in self._model.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and (self._peft or name in module._non_persistent_buffers_set):
                    yield f"{prefix}.{name}" if prefix else name, buffer
        if self._peft:
            yield from (
                (name, each) for name, each in self._model.named_parameters() if not each.requires_grad
            )

    def _adapters(self) -> dict[str, dict[str, Any]]:
        if self._with_embeddings is None:
            # To know whether embeddings belong to an adapter, PEFT may ask the hub: once, not at every save.
            found, plain = self._adapters_with("auto"), self._adapters_with(False)
            self._with_embeddings = any(found[name].keys() != plain[name].keys() for name in found)
            return found
        return self._adapters_with(self._with_embeddings)

    def _adapters_with(self, embeddings: Any) -> dict[str, dict[str, Any]]:
        from peft import get_peft_model_state_dict

        model: Any = self._model
        return {
            name: dict(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=embeddings))
            for name in model.peft_config
        }
