"""Callbacks that average weights, as far as Lightning's own restoring leaves them short of what they were.

`StochasticWeightAveraging` makes its schedule when an epoch begins, which moves learning rates, and has its last
epoch, in which it only measures batch norms, arranged there too. `WeightAveraging` copies the model before
it is given its weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["begin_with", "may_move_weights", "revive", "revive_in_the_midst"]


def may_move_weights(trainer: Any) -> bool:
    """Whether the beginning of an epoch may put averaged weights into the model."""
    return any(True for _ in _of(trainer, "StochasticWeightAveraging"))


def begin_with(trainer: Any, module: torch.nn.Module) -> None:
    """The model was given other weights before training: their copies of it are of those."""
    for each in _of(trainer, "WeightAveraging"):
        each._average_model.module.load_state_dict(copy.deepcopy(module.state_dict()))
    for each in _of(trainer, "StochasticWeightAveraging"):
        each._average_model.load_state_dict(copy.deepcopy(module.state_dict()))


def revive(trainer: Any, module: Any) -> None:
    """Averaging that had begun when the checkpoint was made goes on with the schedule that it had.

    The counters of the loop are in place.
    """
    for each in _of(trainer, "StochasticWeightAveraging"):
        if each._scheduler_state is None or each._initialized:
            continue
        groups = trainer.optimizers[0].param_groups
        before = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        # In the epoch of its last update it makes the schedule, and does nothing else.
        each.on_train_epoch_start(_InEpoch(trainer, each._latest_update_epoch), module)
        for group, values in zip(groups, before, strict=True):
            group.update(values)


def revive_in_the_midst(trainer: Any, module: Any) -> None:
    """The same, in an epoch whose beginning is over: what is arranged there for that epoch is arranged now."""
    revive(trainer, module)
    for each in _of(trainer, "StochasticWeightAveraging"):
        if each._max_epochs != -1 and trainer.current_epoch == each.swa_end + 1:
            measured = {name: buffer.clone() for name, buffer in module.named_buffers()}
            each.on_train_epoch_start(trainer, module)
            with torch.no_grad():
                for name, buffer in module.named_buffers():
                    buffer.copy_(measured[name])


class _InEpoch:
    """A trainer that is in another epoch."""

    def __init__(self, trainer: Any, epoch: int) -> None:
        self._trainer = trainer
        self.current_epoch = epoch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


def _of(trainer: Any, name: str) -> Iterator[Any]:
    """The trainer's callbacks of the class of that name, in whichever of Lightning's packages it is."""
    for callback in trainer.callbacks:
        known = any(base.__name__ == name for base in type(callback).__mro__)
        if known and getattr(callback, "_average_model", None) is not None:
            yield callback
