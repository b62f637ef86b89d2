"""Gradients between two iterations of a training loop: which are worth keeping, and how they come back."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ckpt_torch.wrappers import plain_name, walk

__all__ = ["Gradients", "GradientsNow"]


class Gradients:
    """Whether gradients at a safe point are worth keeping, and how they come back.

    Those of an optimizer that made no step in the last iteration are the sum of what was accumulated, and
    are saved. After a step they will be cleared before they are used; only which parameters had one is
    kept, since an optimizer passes over a parameter without a gradient but not over one whose gradient is
    zero. Where there are several optimizers, the loss of one may have added to the gradients of another
    after that one's step: those are saved, too.
    """

    def __init__(self, objects: Mapping[str, Any]) -> None:
        items = [pair for name, value in objects.items() for pair in walk(name, value)]
        self._modules = {path: item for path, item in items if isinstance(item, nn.Module)}
        optimizers = [item for _, item in items if isinstance(item, torch.optim.Optimizer)]
        self._several = len(optimizers) > 1
        self._hooks = [optimizer.register_step_post_hook(self._note_step) for optimizer in optimizers]
        self._stepped: dict[int, _Seen | None] = {}
        self._steps: dict[int, int] = {}
        self._known: list[tuple[str, nn.Parameter]] | None = None

    @property
    def steps(self) -> int:
        """The steps made since `begin_iteration`, by the optimizer that has made most of them."""
        return max(self._steps.values(), default=0)

    def begin_iteration(self) -> None:
        """An iteration of the training loop begins."""
        self._stepped.clear()
        self._steps.clear()

    def refresh(self) -> None:
        """Modules may have changed their parameters."""
        self._known = None

    def now(self) -> GradientsNow:
        """The gradients as they are, without a copy."""
        if self._known is None:
            self._known = list(self._parameters())
        found = GradientsNow(len(self._known))
        for name, parameter in self._known:
            grad = parameter.grad
            if grad is not None:
                found.add(name, parameter, grad, spent=self._is_spent(parameter, grad))
        return found

    def capture(self) -> dict[str, Any]:
        """The gradients that are accumulated, and the names of the other parameters that have one."""
        self.refresh()
        state = self.now().state()
        assert state is not None
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `capture` gave."""
        for name, parameter in self._parameters():
            saved = state["accumulated"].get(name)
            if saved is not None:
                parameter.grad = saved.to(device=parameter.device, copy=True)
            elif state["held"] is True or name in state["held"]:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad = None

    def close(self) -> None:
        """Takes its hooks off the optimizers."""
        for hook in self._hooks:
            hook.remove()

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for path, module in self._modules.items():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    yield f"{path}/{plain_name(name)}", parameter

    def _note_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._steps[id(optimizer)] = self._steps.get(id(optimizer), 0) + 1
        for group in optimizer.param_groups:
            for each in group["params"]:
                self._stepped[id(each)] = _Seen(each.grad) if self._several else None

    def _is_spent(self, parameter: nn.Parameter, grad: torch.Tensor) -> bool:
        if id(parameter) not in self._stepped:
            return False
        spent = self._stepped[id(parameter)]
        return spent is None or spent.is_still(grad)


class _Seen:
    """A gradient as it was at some moment. It is not kept alive for that."""

    def __init__(self, grad: torch.Tensor | None) -> None:
        self._grad = None if grad is None else weakref.ref(grad)
        self._version = None if grad is None else grad._version

    def is_still(self, grad: torch.Tensor | None) -> bool:
        if grad is None or self._grad is None:
            return grad is None and self._grad is None
        return self._grad() is grad and grad._version == self._version


class GradientsNow:
    """The gradients of one moment: they may be asked for as long as they are what they were."""

    def __init__(self, parameters: int) -> None:
        self._parameters = parameters
        self._held: list[str] = []
        self._accumulated: list[tuple[str, nn.Parameter, _Seen]] = []

    def add(self, name: str, parameter: nn.Parameter, grad: torch.Tensor, *, spent: bool) -> None:
        if spent:
            self._held.append(name)
        else:
            self._accumulated.append((name, parameter, _Seen(grad)))

    def state(self) -> dict[str, Any] | None:
        """As plain values and tensors; None where accumulated gradients have changed since."""
        accumulated: dict[str, torch.Tensor] = {}
        for name, parameter, seen in self._accumulated:
            grad = parameter.grad
            if grad is None or not seen.is_still(grad):
                return None
            accumulated[name] = grad
        held = True if len(self._held) == self._parameters else sorted(self._held)
        return {"accumulated": accumulated, "held": held}
