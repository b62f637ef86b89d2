"""The weights of a model as state and back: whole models, and PEFT's adapters alone.

Tied weights are one tensor under several names, which the engine stores once. What of some weights fits a model
that has changed is `ckpt_torch.weights`'s, files are `folder.py`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import ckpt_torch
from ckpt_core import CheckpointManager, StateMismatchError
from ckpt_core.fitting import Renames, WeightsReport, fit
from ckpt_torch import fit_weights

__all__ = ["ModelWeights", "is_peft", "load_weights"]

_log = logging.getLogger("ckpt_core.transformers")


def is_peft(model: Any) -> bool:
    """Whether it is a model of PEFT: a frozen one with adapters."""
    return all(hasattr(model, name) for name in ("peft_config", "base_model", "active_adapters"))


def load_weights(
    model: nn.Module,
    manager: CheckpointManager,
    ref: str = "best",
    *,
    strict: bool = True,
    renames: Renames | None = None,
) -> WeightsReport:
    """The weights of a checkpoint into a model, which may have changed since. See `ckpt_torch.load_weights`.

    Of a model of PEFT only what is trained is needed; checkpoints that hold adapters only, as those that were
    read from PEFT's folders do, can be loaded into such models alone.
    """
    if not is_peft(model):
        return ckpt_torch.load_weights(model, manager, ref, strict=strict, renames=renames)
    try:
        saved = manager.load(ref, include="model")
    except StateMismatchError as error:
        if error.kind != "include":
            raise
        saved = manager.load(ref, include="adapters")
    report = _restore(model, saved, strict=strict, renames=renames)
    report = replace(report, checkpoint=manager.loaded)
    _log.log(logging.INFO if report.ok else logging.WARNING, "weights of %s: %s", ref, report)
    return report


def _restore(
    model: nn.Module, state: Mapping[str, Any], *, strict: bool = True, renames: Renames | None = None
) -> WeightsReport:
    if not state.get("model"):
        return _restore_adapters(model, state["adapters"], strict=strict, renames=renames)
    needed = None
    if is_peft(model):
        needed = {name for name, each in model.named_parameters() if each.requires_grad}
    return fit_weights(model, state["model"], strict=strict, renames=renames, needed=needed)


def _restore_adapters(
    model: Any, adapters: Mapping[str, Mapping[str, Any]], *, strict: bool, renames: Renames | None
) -> WeightsReport:
    """Adapters by the names that PEFT gives their weights in its files."""
    from peft import set_peft_model_state_dict

    unknown = sorted(adapters.keys() - model.peft_config.keys())
    if unknown:
        raise StateMismatchError(
            f"the model has no adapter {', '.join(unknown)}: add one with PEFT first", paths=tuple(unknown)
        )
    everything = _shapes(model.state_dict())  # embeddings may be among the saved ones
    fitted = {}
    for name, saved in adapters.items():
        own = _shapes(_adapter(model, name, embeddings=False))
        fitted[name] = fit(
            _shapes(saved), everything | own, strict=strict, renames=renames, needed=own.keys()
        )
    for name, (fitting, _) in fitted.items():
        weights = {target: adapters[name][source] for target, source in fitting.items()}
        set_peft_model_state_dict(model, weights, name)

    def all_of(part: str) -> tuple[Any, ...]:
        return tuple(each for _, report in fitted.values() for each in getattr(report, part))

    return WeightsReport(
        all_of("loaded"), all_of("missing"), all_of("unexpected"), all_of("misshapen"), all_of("left_out")
    )


def _adapter(model: Any, name: str, embeddings: Any) -> dict[str, Any]:
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=embeddings))


def _shapes(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(each.shape) if hasattr(each, "shape") else None for name, each in weights.items()}


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
        _restore(self._model, state)
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
        model: Any = self._model
        return {name: _adapter(model, name, embeddings) for name in model.peft_config}
