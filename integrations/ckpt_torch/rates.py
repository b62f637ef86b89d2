"""The learning rate of PyTorch's optimizers, as hooks and save policies are told it."""

from __future__ import annotations

from collections.abc import Iterable

from torch.optim import Optimizer

__all__ = ["learning_rate_of"]


def learning_rate_of(optimizers: Iterable[Optimizer]) -> float | None:
    """The largest of all groups of parameters, which the next step will use; None where there are none."""
    rates = (float(group["lr"]) for each in optimizers for group in each.param_groups if "lr" in group)
    return max(rates, default=None)
