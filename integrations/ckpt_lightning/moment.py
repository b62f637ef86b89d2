"""The last good state, for when training fails in the midst of a step.

A step that fails before its optimizer has moved leaves weights and optimizer as they were. What it has changed by
then is small: random states, counters, positions in the data, what was logged, running statistics. That is noted
at every instant at which a resume would be exact, and put in its place if the next step fails.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

__all__ = ["Buffers", "Moment", "early_states", "tensors_of"]

_EARLY = ("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward")
"""Hooks of a callback that come before the optimizer moves."""


class Moment:
    """One instant: `state` is what would be saved of it besides what did not change since."""

    def __init__(self, state: Mapping[str, Any], versions: list[int]) -> None:
        self.state = state
        self.versions = versions


class Buffers:
    """Copies of a model's buffers as they were at the last moment, of those that anybody writes to.

    Running statistics are written without a trace; the count beside them is not. So all buffers of a module
    are copied as soon as one was seen to change.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._owners = {
            name: [(key, each) for key, each in part.named_buffers(recurse=False)]
            for name, part in module.named_modules()
            if any(True for _ in part.named_buffers(recurse=False))
        }
        self._versions = {name: _versions(each for _, each in owned) for name, owned in self._owners.items()}
        self._copies: dict[str, torch.Tensor] = {}

    def note(self) -> None:
        """Bring the copies up to date."""
        saved: list[torch.Tensor] = []
        live: list[torch.Tensor] = []
        for name, owned in self._owners.items():
            versions = _versions(each for _, each in owned)
            if versions == self._versions[name]:
                continue
            self._versions[name] = versions
            for key, each in owned:
                path = f"{name}.{key}" if name else key
                if path not in self._copies:
                    self._copies[path] = torch.empty_like(each)
                saved.append(self._copies[path])
                live.append(each.detach())
        if saved:
            torch._foreach_copy_(saved, live)

    def changed(self) -> dict[str, torch.Tensor] | None:
        """By name, as they were at the last `note`, those that may have changed since; None if one is not known."""
        found: dict[str, torch.Tensor] = {}
        for name, owned in self._owners.items():
            if _versions(each for _, each in owned) == self._versions[name]:
                continue
            for key, _ in owned:
                path = f"{name}.{key}" if name else key
                if path not in self._copies:
                    return None
                found[path] = self._copies[path]
        return found


def tensors_of(module: torch.nn.Module) -> list[torch.Tensor]:
    """The parameters, whose versions tell whether anybody has written to them."""
    return list(module.parameters())


def early_states(callbacks: list[Any]) -> dict[str, Any]:
    """The states of those callbacks that are called before the optimizer moves, and have a state."""
    return {each.state_key: copy.deepcopy(each.state_dict()) for each in callbacks if _is_early(type(each))}


def _is_early(kind: type) -> bool:
    return _overrides(kind, "state_dict") and any(_overrides(kind, name) for name in _EARLY)


def _overrides(kind: type, name: str) -> bool:
    return any(name in vars(base) for base in kind.__mro__ if base.__name__ != "Callback")


def _versions(tensors: Iterator[torch.Tensor]) -> list[int]:
    return [each._version for each in tensors]
