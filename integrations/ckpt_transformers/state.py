"""Trainer's own state beside the weights: optimizer, schedule, scaler, counters, logs, callbacks, sums.

What is captured at a safe point, and where it goes when training is resumed. The loop's place in the data is
`watch.py`'s, weights are `weights.py`'s.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ckpt_torch import objects

__all__ = [
    "LARGE", "capture_counters", "capture_objects", "capture_sums", "log_history", "optimizers_of",
    "restore_counters", "restore_objects", "restore_sums",
]  # fmt: skip

_log = logging.getLogger("ckpt_core.transformers")

LARGE = frozenset({"model", "adapters", "buffers", "optimizer"})
"""What of a state is not to be held twice while training."""
_ASIDE = ("log_history", "stateful_callbacks")
_CONTINUED = ("epoch", "global_step", "num_input_tokens_seen", "total_flos", "best_metric", "best_global_step",
              "best_model_checkpoint")  # fmt: skip
"""Fields of TrainerState that training changes. The others say again what the arguments say."""
_SUMS = {
    "tr_loss": "_tr_loss", "total_loss": "_total_loss_scalar", "logged_step": "_globalstep_last_logged",
    "flos": "current_flos", "begin_step": "_initial_global_step",
    "begin_tokens": "_initial_num_input_tokens_seen",
}  # fmt: skip
"""By names of our own, attributes of Trainer. Older versions lack some."""


def capture_objects(trainer: Any) -> dict[str, Any]:
    """Optimizer, schedule and scaler."""
    return {name: objects.capture(each) for name, each in _objects(trainer)}


def restore_objects(trainer: Any, state: Mapping[str, Any]) -> None:
    """Put back what `capture_objects` gave. Raises StateMismatchError."""
    for name, each in _objects(trainer):
        if name in state:
            objects.restore(name, each, state[name])
        else:
            _log.warning("%s is not in the checkpoint: it starts as it is", name)


def optimizers_of(trainer: Any) -> list[Any]:
    """The optimizer, if there is one yet."""
    optimizer = trainer.optimizer
    return [] if optimizer is None else [getattr(optimizer, "optimizer", optimizer)]  # accelerate wraps it


def _objects(trainer: Any) -> Iterable[tuple[str, Any]]:
    for optimizer in optimizers_of(trainer):
        yield "optimizer", optimizer
    yield "scheduler", trainer.lr_scheduler
    scaler = getattr(trainer.accelerator, "scaler", None)
    if scaler is not None:
        yield "scaler", scaler


def capture_counters(trainer: Any) -> dict[str, Any]:
    """TrainerState, and the states of the callbacks that export one."""
    state = trainer.state
    fields = {
        each.name: getattr(state, each.name) for each in dataclasses.fields(state) if each.name not in _ASIDE
    }
    return {
        "state": fields,
        # As text, a line for each: it grows with every log, and what was there before is stored once.
        "log_history": "".join(
            json.dumps(each, default=_plain) + "\n" for each in state.log_history
        ).encode(),
        "callbacks": [[type(each).__name__, each.state()] for each in _exporting(trainer)],
    }


def log_history(counters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The log as `capture_counters` kept it."""
    return [json.loads(line) for line in counters["log_history"].decode().splitlines()]


def restore_counters(trainer: Any, counters: Mapping[str, Any]) -> None:
    """Put back what `capture_counters` gave, but for what the arguments of this run say otherwise."""
    for name in _CONTINUED:
        if name in counters["state"]:
            setattr(trainer.state, name, counters["state"][name])
    trainer.state.log_history = log_history(counters)
    saved = [tuple(each) for each in counters["callbacks"]]
    for callback in _exporting(trainer):
        name = type(callback).__name__
        mine = next((each for each in saved if each[0] == name), None)
        if mine is None:
            _log.warning("%s was not there when the checkpoint was made: it starts as it is", name)
            continue
        saved.remove(mine)
        for attribute, value in mine[1].get("attributes", {}).items():
            setattr(callback, attribute, value)
    if saved:
        _log.warning(
            "in the checkpoint, but not among the callbacks: %s", ", ".join(name for name, _ in saved)
        )


def _exporting(trainer: Any) -> list[Any]:
    from transformers.trainer_callback import ExportableState

    return [
        each
        for each in (*trainer.callback_handler.callbacks, trainer.control)
        if isinstance(each, ExportableState)
    ]


def capture_sums(trainer: Any) -> dict[str, Any]:
    """What Trainer adds up between two logs and over the whole training, and keeps out of its checkpoints."""
    sums = {name: getattr(trainer, where) for name, where in _SUMS.items() if hasattr(trainer, where)}
    return sums | {"tr_loss": trainer._tr_loss.detach().clone()}


def restore_sums(trainer: Any, sums: Mapping[str, Any]) -> None:
    """Put back what `capture_sums` gave."""
    for name, where in _SUMS.items():
        if name in sums and hasattr(trainer, where):
            setattr(trainer, where, sums[name])
    trainer._tr_loss = torch.as_tensor(sums["tr_loss"]).to(trainer.args.device, copy=True)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
