"""Weights into a model that need not be the one they came from: what fits, what does not, and new names.

Taking weights out of a model is `weights.py`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ckpt_core import Checkpoint, CheckpointManager, StateMismatchError, UsageError

__all__ = ["Renames", "WeightsReport", "fit_weights", "is_peft", "load_weights", "restore_adapters"]

_log = logging.getLogger("ckpt_core.transformers")
_SHOWN = 8

Renames = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """What of a checkpoint's weights fits a model, by name.

    `missing`: in the model only; `unexpected`: in the checkpoint only; `misshapen`: in both, with the shape
    in the checkpoint and that in the model; `left_out`: as the caller wished.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    left_out: tuple[str, ...] = ()
    checkpoint: Checkpoint | None = None

    @property
    def ok(self) -> bool:
        """Whether everything fits."""
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        shapes = [f"{name} {list(saved)} -> {list(there)}" for name, saved, there in self.misshapen]
        rows = (
            (shapes, "of another shape (checkpoint -> model)"),
            (self.missing, "only in the model, left as they were"),
            (self.unexpected, "only in the checkpoint, not loaded"),
            (self.left_out, "left out by renames="),
        )
        lines = [f"{len(self.loaded)} weights fit"]
        lines += [f"{len(names)} {what}: {_some(names)}" for names, what in rows if names]
        return "\n  ".join(lines)


def load_weights(
    model: nn.Module,
    manager: CheckpointManager,
    ref: str = "best",
    *,
    strict: bool = True,
    renames: Renames | None = None,
) -> WeightsReport:
    """The weights of a checkpoint into a model, which may have changed since. Nothing else is loaded.

    `renames`: from a name in the checkpoint, or the part of it before a dot, to the name in the model; to None
    for what is to be left out. With `strict`, StateMismatchError names all that does not fit and nothing is
    loaded; without, what fits is loaded and the report says what does not. Raises NotFoundError too.
    """
    try:
        saved = manager.load(ref, include="model")["model"]
    except StateMismatchError as error:
        if error.kind != "include":
            raise
        if not is_peft(model):  # only Trainer's folders name adapters and nothing else
            raise UsageError(
                f"{ref} holds adapters only: give a model of PEFT that has them", kind="adapters"
            ) from error
        report = restore_adapters(model, manager.load(ref, include="adapters")["adapters"])
    else:
        report = fit_weights(model, saved, strict=strict, renames=renames)
    report = replace(report, checkpoint=manager.loaded)
    _log.log(logging.INFO if report.ok else logging.WARNING, "weights of %s: %s", ref, report)
    return report


def fit_weights(
    model: nn.Module, saved: Mapping[str, Any], *, strict: bool = True, renames: Renames | None = None
) -> WeightsReport:
    """Load named tensors into a model; of PEFT's models only what is trained is needed. See `load_weights`."""
    live = model.state_dict()
    fitting: dict[str, Any] = {}
    unexpected: list[str] = []
    left_out: list[str] = []
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    for name, value in saved.items():
        target = _renamed(name, renames or {})
        if target is None:
            left_out.append(name)
        elif target not in live:
            unexpected.append(name)
        elif isinstance(value, torch.Tensor) and value.shape != live[target].shape:
            misshapen.append((target, tuple(value.shape), tuple(live[target].shape)))
        else:
            fitting[target] = value
    # A weight that is tied to one that is there is not missing: Trainer's files name one of them only.
    known = fitting.keys() | {name for name, *_ in misshapen}
    places = {_place(live[name]) for name in known}
    missing = tuple(
        name for name in _needed(model, live) if name not in known and _place(live[name]) not in places
    )
    report = WeightsReport(tuple(fitting), missing, tuple(unexpected), tuple(misshapen), tuple(left_out))
    if strict and not report.ok:
        raise StateMismatchError(
            f"the weights of the checkpoint do not fit the model:\n  {report}\nload what fits with strict=False, or "
            "name what is called otherwise now with renames=",
            paths=(*missing, *unexpected, *(name for name, *_ in misshapen)),
            report=report,
        )
    model.load_state_dict(fitting, strict=False)
    return report


def is_peft(model: Any) -> bool:
    """Whether it is a model of PEFT: a frozen one with adapters."""
    return all(hasattr(model, name) for name in ("peft_config", "base_model", "active_adapters"))


def restore_adapters(model: Any, adapters: Mapping[str, Mapping[str, Any]]) -> WeightsReport:
    """Adapters by the names that PEFT gives their weights in its files. Raises StateMismatchError."""
    from peft import set_peft_model_state_dict

    unknown = sorted(adapters.keys() - model.peft_config.keys())
    if unknown:
        raise StateMismatchError(
            f"the model has no adapter {', '.join(unknown)}: add one with PEFT first", paths=tuple(unknown)
        )
    loaded: list[str] = []
    for name, saved in adapters.items():
        set_peft_model_state_dict(model, dict(saved), adapter_name=name)
        loaded += saved
    return WeightsReport(tuple(loaded))


def _renamed(name: str, renames: Renames) -> str | None:
    for old in sorted(renames, key=len, reverse=True):
        new, rest = renames[old], name[len(old) :]
        if name.startswith(old) and (not rest or not old or rest.startswith(".") or old.endswith(".")):
            return None if new is None else f"{new}{rest}".removeprefix(".")
    return name


def _needed(model: nn.Module, live: Mapping[str, Any]) -> list[str]:
    if is_peft(model):
        return [name for name, each in model.named_parameters() if each.requires_grad]
    return list(live)


def _place(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.numel():
        return (str(value.device), value.data_ptr(), tuple(value.shape), value.stride())
    return id(value)


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
