"""The weights of a checkpoint into a module, which may have changed since: for fine-tuning and for evaluation.

Finds them wherever an adapter of PyTorch's family has saved them. Which of them fit is `ckpt_core.fitting`'s;
the exact state of a training, weights and all, is `objects.py`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ckpt_core import CheckpointManager, StateMismatchError, UsageError
from ckpt_core.fitting import Renames, Shape, WeightsReport, fit
from ckpt_torch.wrappers import plain_name, unwrapped

__all__ = ["Renames", "WeightsReport", "fit_weights", "load_weights", "start_from"]

_log = logging.getLogger("ckpt_core.torch")

_HOMES = ("model", "state_dict")
"""Where weights are: in checkpoints of a plain loop and of Trainer, and in those of Lightning."""
_SHOWN = 8


def load_weights(
    model: nn.Module,
    manager: CheckpointManager,
    ref: str = "best",
    *,
    strict: bool = True,
    renames: Renames | None = None,
    part: str | None = None,
) -> WeightsReport:
    """The weights of a checkpoint into a model, which may have changed since. Nothing else is read.

    `renames`: from a name in the checkpoint, or the part of it before a dot, to the name in the model; to None
    for what is to be left out. With `strict`, StateMismatchError names all that does not fit, and nothing is
    loaded; without, what fits is loaded and the report says what does not. `part`: the path of the weights in
    the checkpoint, where it holds those of several models. Raises NotFoundError and CorruptionError, too.
    """
    return _load(model, manager, ref, _HOMES if part is None else (part,), strict, renames)


def start_from(
    models: Mapping[str, nn.Module],
    manager: CheckpointManager,
    ref: str,
    *,
    strict: bool = True,
    renames: Renames | None = None,
) -> None:
    """The weights that a training begins with, into each of its models; each looks for its own path first.

    Several models take only what is theirs. See `load_weights`.
    """
    for path, model in models.items():
        homes = (path, *_HOMES) if len(models) == 1 else (path,)
        _load(model, manager, ref, homes, strict, renames)


def _load(
    model: nn.Module,
    manager: CheckpointManager,
    ref: str,
    homes: tuple[str, ...],
    strict: bool,
    renames: Renames | None,
) -> WeightsReport:
    saved = _read(manager, ref, homes)
    report = fit_weights(model, saved, strict=strict, renames=renames)
    report = replace(report, checkpoint=manager.loaded)
    _log.log(logging.INFO if report.ok else logging.WARNING, "weights of %s: %s", ref, report)
    return report


def fit_weights(
    model: nn.Module,
    saved: Mapping[str, Any],
    *,
    strict: bool = True,
    renames: Renames | None = None,
    needed: Collection[str] | None = None,
) -> WeightsReport:
    """Puts named tensors into a model. See `load_weights`.

    `needed`: the names in the model that must be there; left out, all of them. One that is tied to a weight
    that is there counts as there, as some files name but one of those.
    """
    module = unwrapped(model)
    state = module.state_dict(keep_vars=True)
    names = {plain_name(name): name for name in state}
    live = {plain_name(name): value for name, value in state.items()}
    sources = {plain_name(name): value for name, value in saved.items()}
    shapes = {name: _shape(value) for name, value in sources.items()}
    there = {name: _shape(value) for name, value in live.items()}
    _, first = fit(shapes, there, strict=False, renames=renames)
    known = {*first.loaded, *(name for name, *_ in first.misshapen)}
    places = {_place(live[name]) for name in known}
    wanted = [
        name for name in live if (needed is None or name in needed) and _place(live[name]) not in places
    ]
    fitting, report = fit(shapes, there, strict=strict, renames=renames, needed=wanted)
    module.load_state_dict({names[to]: sources[name] for to, name in fitting.items()}, strict=False)
    return report


def _read(manager: CheckpointManager, ref: str, homes: tuple[str, ...]) -> Mapping[str, Any]:
    for home in homes:
        try:
            found = manager.load(ref, include=home, framework="torch")
        except StateMismatchError as error:
            if error.kind != "include":
                raise
            continue
        for key in home.split("/"):
            found = found[int(key)] if isinstance(found, (list, tuple)) else found[key]
        if isinstance(found, Mapping) and not any(isinstance(each, Mapping) for each in found.values()):
            return found
    with manager.open(ref) as reader:
        tensors = reader.tensors()
    branches = list(dict.fromkeys(path.rpartition("/")[0] or path for path in tensors))
    known = ", ".join(branches[:_SHOWN]) + (", ..." if len(branches) > _SHOWN else "")
    raise UsageError(
        f"the checkpoint has no weights of one model at {' or '.join(dict.fromkeys(homes))}; it has tensors at "
        f'{known}: say which with part="..."',
        kind="part",
    )


def _shape(value: Any) -> Shape:
    if not isinstance(value, torch.Tensor) or nn.parameter.is_lazy(value):
        return None
    return tuple(value.shape)


def _place(value: Any) -> Any:
    """Equal for two tensors that are the same memory seen the same way."""
    if isinstance(value, torch.Tensor) and not nn.parameter.is_lazy(value) and value.numel():
        return (str(value.device), value.data_ptr(), tuple(value.shape), value.stride())
    return id(value)
