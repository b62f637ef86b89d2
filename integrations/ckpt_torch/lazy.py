"""What only a step of an optimizer changes need not be copied before training goes on: parameters, their moments.

Forward and backward passes leave them alone, and the next step of any optimizer waits for the copy. The idea is
DataStates-LLM's (Maurya, Underwood, Rafique, Cappello, Nicolae, HPDC 2024).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Self

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ckpt_core import UsageError

__all__ = ["LazyParameters", "Staging"]

Staging = Literal["copy", "lazy"]
"""When tensors are copied: all of them before training goes on; or parameters and what optimizers keep while
forward and backward run."""

_log = logging.getLogger("ckpt_core.torch")


class LazyParameters:
    """The parameters of some optimizers and what these keep for them. `close` it.

    That nothing else writes to them is looked after by PyTorch's own count of in-place changes: where it has moved
    during the copy, the save is given up, and from then on everything is copied at once. What it does not count,
    as `parameter.data.clamp_()`, must not happen between the end of an iteration and the next step.
    """

    @classmethod
    def chosen(cls, staging: str, optimizers: Callable[[], Iterable[Optimizer]]) -> Self | None:
        """For an adapter's `staging=`: None for `"copy"`. Raises UsageError."""
        if staging not in ("copy", "lazy"):
            raise UsageError(f'staging is {staging!r}; give "copy" or "lazy"', kind="option")
        return cls(optimizers) if staging == "lazy" else None

    def __init__(self, optimizers: Callable[[], Iterable[Optimizer]]) -> None:
        self._optimizers = optimizers
        self._safe = True
        self._wait: Callable[[], None] = _nothing
        self._tensors: dict[tuple[str, int, int], tuple[torch.Tensor, int]] = {}
        # Of every optimizer, also of one that is made later: it might have the same parameters.
        self._hook = register_optimizer_step_pre_hook(lambda *_: self._wait())

    def begin(self, wait: Callable[[], None]) -> bool:
        """A save begins: the next step of any optimizer waits for its copies."""
        if not self._safe:
            return False
        self._tensors = {_place(tensor): (tensor, tensor._version) for tensor in self._found()}
        self._wait = wait
        return bool(self._tensors)

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and _place(value) in self._tensors

    def changed(self) -> str | None:
        """Whether somebody has written to one of them meanwhile."""
        changed = sum(tensor._version != version for tensor, version in self._tensors.values())
        if not changed:
            return None
        if self._safe:
            self._safe = False
            _log.warning(
                "%d parameters or moments were changed outside of an optimizer's step while they were copied: from "
                'now on everything is copied before training goes on (staging="copy")',
                changed,
            )
        return f"{changed} of its tensors were changed outside of an optimizer's step while they were copied"

    def close(self) -> None:
        """Optimizers are left alone again."""
        self._hook.remove()
        self._wait, self._tensors = _nothing, {}

    def _found(self) -> Iterator[torch.Tensor]:
        for optimizer in self._optimizers():
            for group in optimizer.param_groups:
                yield from (each for each in group["params"] if _is_plain(each))
            for kept in optimizer.state.values():
                if isinstance(kept, dict):
                    yield from (each for each in kept.values() if _is_plain(each))


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor with memory of its own; what a library makes of tensors is copied at once."""
    return (
        isinstance(value, torch.Tensor)
        and type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.numel() > 0
    )


def _place(tensor: torch.Tensor) -> tuple[str, int, int]:
    return str(tensor.device), tensor.data_ptr(), tensor.numel() * tensor.element_size()


def _nothing() -> None:
    return None
