"""What only a step of an optimizer changes need not be copied before training goes on: parameters, their moments.

Forward and backward passes leave them alone, and the next step of any optimizer waits for the copy. The idea is
DataStates-LLM's (Maurya, Underwood, Rafique, Cappello, Nicolae, HPDC 2024).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Self, cast

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ckpt_core import UsageError

__all__ = ["LazyParameters", "Staging", "checked_staging"]

Staging = Literal["copy", "lazy"]
"""When tensors are copied: all of them before training goes on; or parameters and what optimizers keep while
forward and backward run."""

_log = logging.getLogger("ckpt_core.torch")
_SAMPLES = 2
_DENSE = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)


def checked_staging(staging: str) -> Staging:
    """An adapter's `staging=`. Raises UsageError."""
    if staging not in ("copy", "lazy"):
        raise UsageError(f'staging is {staging!r}; give "copy" or "lazy"', kind="option")
    return cast(Staging, staging)


class LazyParameters:
    """The parameters of some optimizers and what these keep for them. `close` it.

    Whether something else has written to them during the copy is asked twice: of PyTorch's own count of in-place
    changes, and, as that knows nothing of `parameter.data.clamp_()` or of a kernel that is replayed, of some values
    of every tensor. If so, the save is given up, and from then on everything is copied at once; so it is from the
    beginning where the steps of an optimizer cannot be waited for.
    """

    @classmethod
    def chosen(cls, staging: str, optimizers: Callable[[], Iterable[Optimizer]]) -> Self | None:
        """For an adapter's `staging=`: None for `"copy"`. Raises UsageError."""
        return cls(optimizers) if checked_staging(staging) == "lazy" else None

    def __init__(self, optimizers: Callable[[], Iterable[Optimizer]]) -> None:
        self._optimizers = optimizers
        self._safe = True
        self._wait: Callable[[], None] = _nothing
        self._tensors: dict[tuple[torch.device, int, int], tuple[torch.Tensor, int]] = {}
        self._samples: list[list[torch.Tensor]] = []
        self._values: list[torch.Tensor] = []
        # Of every optimizer, also of one that is made later: it might have the same parameters.
        self._hook = register_optimizer_step_pre_hook(self._before_step)

    def begin(self, wait: Callable[[], None]) -> bool:
        """A save begins: the next step of any optimizer waits for its copies."""
        self.settle()
        if self._safe:
            doubt = next(filter(None, map(_doubt, self._optimizers())), None)
            if doubt is not None:
                self._copy_from_now_on(doubt)
        if not self._safe:
            return False
        tensors = {_place(tensor): (tensor, tensor._version) for tensor in self._found()}
        if tensors.keys() != self._tensors.keys():
            self._samples = _sampled(tensor for tensor, _ in tensors.values())
        self._tensors, self._values = tensors, [torch.cat(each) for each in self._samples]
        self._wait = wait
        return bool(tensors)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Waits; with a closure, as Lightning has its forward and backward passes in one, when that was called."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        # PyTorch's own optimizers call it before they change anything. Of others nobody knows.
        if closure is None or not type(optimizer).__module__.startswith("torch.optim."):
            self._wait()
            return None

        def then_wait() -> Any:
            try:
                return closure()
            finally:
                self._wait()

        return (args[0], then_wait, *args[2:]), {
            key: each for key, each in kwargs.items() if key != "closure"
        }

    def settle(self) -> None:
        """Somebody is about to change them, who is known to: returns when all is copied."""
        self._wait()

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and _place(value) in self._tensors

    def changed(self) -> str | None:
        """Whether somebody has written to one of them meanwhile."""
        counted = any(tensor._version != version for tensor, version in self._tensors.values())
        pairs = zip(self._samples, self._values, strict=True)
        if not counted and all(torch.equal(torch.cat(live), then) for live, then in pairs):
            return None
        reason = "parameters or moments were changed outside of an optimizer's step while they were copied"
        if self._safe:
            self._copy_from_now_on(reason)
        return reason

    def _copy_from_now_on(self, reason: str) -> None:
        self._safe = False
        _log.warning('%s: from now on everything is copied before training goes on (staging="copy")', reason)

    def close(self) -> None:
        """Optimizers are left alone again."""
        self._hook.remove()
        self.settle()
        self._wait, self._tensors, self._samples, self._values = _nothing, {}, [], []

    def _found(self) -> Iterator[torch.Tensor]:
        for optimizer in self._optimizers():
            for group in optimizer.param_groups:
                yield from (each for each in group["params"] if _is_plain(each))
            for kept in optimizer.state.values():
                if isinstance(kept, dict):
                    yield from (each for each in kept.values() if _is_plain(each))


def _doubt(optimizer: Any) -> str | None:
    """Why the steps of an optimizer might not be waited for; None where they are."""
    if not isinstance(optimizer, Optimizer) or not getattr(type(optimizer).step, "hooked", False):
        return f"{type(optimizer).__name__} makes its steps without PyTorch's hooks"
    if any(group.get("capturable") for group in optimizer.param_groups):
        return f"{type(optimizer).__name__} is capturable, and the replay of a CUDA graph calls no hooks"
    return None


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor with memory of its own; what a library makes of tensors is copied at once."""
    return (
        isinstance(value, torch.Tensor)
        and type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.numel() > 0
        and any(value.is_contiguous(memory_format=each) for each in _DENSE)
    )


def _sampled(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Views of some values of every tensor, of those together that can be joined."""
    kinds: dict[tuple[torch.device, int], list[torch.Tensor]] = {}
    for tensor in tensors:
        count = tensor.numel()
        every = tensor.detach().as_strided((count,), (1,)).view(torch.uint8).view(count, -1)
        kinds.setdefault((tensor.device, every.shape[1]), []).append(every[:: max(1, count // _SAMPLES)])
    return list(kinds.values())


def _place(tensor: torch.Tensor) -> tuple[torch.device, int, int]:
    return tensor.device, tensor.data_ptr(), tensor.nbytes


def _nothing() -> None:
    return None
