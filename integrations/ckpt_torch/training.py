"""All that is saved of one training loop, and how it comes back: objects, gradients, data, random states, counters.

When that is done is `checkpointer.py`'s to say.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch

from ckpt_core import UsageError
from ckpt_torch import objects as parts
from ckpt_torch.gradients import Gradients
from ckpt_torch.guard import Guard
from ckpt_torch.loader import ResumeData, TrackedLoader
from ckpt_torch.rng import capture_rng, restore_rng
from ckpt_torch.wrappers import walk

__all__ = ["Training", "tracked"]

_log = logging.getLogger("ckpt_core.torch")

RESERVED = frozenset({"data", "gradients", "loop", "rng", "session", "state"})


class Training:
    """The state of a loop. `step`: steps made; `epoch`: epochs that are over; `between`: none is going on.

    Raises UsageError for an object that cannot be saved, or whose name is taken.
    """

    def __init__(
        self,
        objects: Mapping[str, Any],
        state: MutableMapping[str, Any],
        loaders: Mapping[str, TrackedLoader],
    ) -> None:
        taken = RESERVED & objects.keys()
        if taken:
            raise UsageError(
                f"{', '.join(sorted(taken))}: the checkpointer keeps that name itself; choose another"
            )
        parts.check(objects)
        self.objects = dict(objects)
        self.state = state
        self.loaders = dict(loaders)
        self.gradients = Gradients(objects)
        self.guard = Guard(objects, state, self.gradients)
        self.step = 0
        self.epoch = 0
        self.between = True
        self.asked: dict[str, int] = {}
        self.asked_before: dict[str, int] = {}
        self._rng: Mapping[str, Any] | None = None

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers among its objects."""
        found = (each for name, value in self.objects.items() for _, each in walk(name, value))
        return [each for each in found if isinstance(each, torch.optim.Optimizer)]

    def moment(self) -> dict[str, Any]:
        """What the next fetch of data would change, as it is now."""
        return {
            "rng": capture_rng(),
            "data": {name: each.position(between=self.between) for name, each in self.loaders.items()},
            "loop": {
                "step": self.step, "epoch": self.epoch, "between": self.between,
                "asked": self.asked_before | self.asked,
            },
        }  # fmt: skip

    def capture(self, moment: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The whole state. Tensors in it are the live ones."""
        return {
            **{name: parts.capture(value) for name, value in self.objects.items()},
            "gradients": self.gradients.capture(),
            "state": dict(self.state),
            **(self.moment() if moment is None else moment),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts everything into a state that was captured, but for the random states: see `go`."""
        for name, value in self.objects.items():
            if name not in state:
                _log.warning("%s is not in the checkpoint: it starts as it is", name)
                continue
            parts.restore(name, value, state[name])
        left = state.keys() - self.objects.keys() - RESERVED
        if left:
            _log.warning("in the checkpoint, but not given to the checkpointer: %s", ", ".join(sorted(left)))
        self.state.update(state["state"])
        loop = state["loop"]
        self.step, self.epoch, self.between = loop["step"], loop["epoch"], loop["between"]
        self.asked_before = loop["asked"]
        self.gradients.restore(state["gradients"])
        for name, loader in self.loaders.items():
            if name in state["data"]:
                loader.resume(state["data"][name])
        self._rng = state["rng"]

    def go(self) -> None:
        """At the first batch, or at the first epoch: what was drawn while everything was set up is undone."""
        if self._rng is None:
            return
        for loader in self.loaders.values():
            loader.go()
        for missing in restore_rng(self._rng):
            _log.warning("%s is in the checkpoint, but cannot be restored here", missing)
        self._rng = None

    def end_epoch(self) -> None:
        """The epoch is over, and with it every pass over the data."""
        self.epoch += 1
        self.between = True
        self.guard.refresh()
        for loader in self.loaders.values():
            loader.rest()

    def close(self) -> None:
        """Takes its hooks off the optimizers."""
        self.gradients.close()
        self.guard.close()


def tracked(loader: Any, resume_data: ResumeData) -> dict[str, TrackedLoader]:
    """The loader, or each of a dict of them, with a position. A single one is called `train`."""
    if loader is None:
        return {}
    named = dict(loader) if isinstance(loader, Mapping) else {"train": loader}
    return {name: TrackedLoader(each, name=name, resume_data=resume_data) for name, each in named.items()}
