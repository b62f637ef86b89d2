"""The last moment at which a resume would have been exact, as long as all of it is still there.

When an exception ends a training, nothing can be turned back: its state can be saved only if the iteration that
was not finished has changed nothing yet, but for what is cheap to keep from the moment before it.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ckpt_torch.gradients import Gradients, GradientsNow
from ckpt_torch.objects import Kept, capture
from ckpt_torch.wrappers import walk

__all__ = ["Guard"]

_SMALL = 1 << 18
"""Bytes of a buffer that is copied at each mark: BatchNorm's kernels change theirs without a trace."""
_MOST_BYTES = 16 << 20
"""Copies of buffers in all, those included of larger ones that were seen to change."""
_MOST_PARTS = 10_000
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.device, torch.dtype)
_BY_IDENTITY = (
    types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type, functools.partial,
    enum.Enum, nn.Module, torch.optim.Optimizer,
)  # fmt: skip


class Guard:
    """Marks the moments between two iterations, and gives the state of the last one when it is asked for.

    A mark takes some hundred microseconds for a model of some hundred tensors. After it, forward passes may
    move buffers and random states, and backward passes make gradients. A step of an optimizer, or anything
    else that writes to weights, schedulers, scalers or gradients that were accumulated, ends it.
    """

    def __init__(
        self, objects: Mapping[str, Any], state: MutableMapping[str, Any], gradients: Gradients
    ) -> None:
        self._objects = objects
        self._state = state
        self._gradients = gradients
        items = [item for name, value in objects.items() for _, item in walk(name, value)]
        self._modules = [item for item in items if isinstance(item, nn.Module)]
        self._optimizers = [item for item in items if isinstance(item, torch.optim.Optimizer)]
        self._others = [item for item in items if not isinstance(item, (nn.Module, torch.optim.Optimizer))]
        self._hooks = [each.register_step_pre_hook(self._note_step) for each in self._optimizers]
        self._tensors: list[_Tensor] | None = None
        self._moving = _Moving()
        self._firsts = _FirstValues([])
        self._marked: _Marked | None = None

    def mark(self, moment: Mapping[str, Any]) -> None:
        """This is such a moment. `moment`: what of the state is kept as it is now, and not looked at again."""
        self._marked = None
        try:
            if self._tensors is None:
                self._moving = _Moving()
                self._tensors = self._find_tensors()
                self._firsts = _FirstValues([each.tensor for each in self._tensors])
            versions = [each.tensor._version for each in self._tensors]
            self._moving.keep(self._tensors, versions)
            self._firsts.note()
            self._marked = _Marked(
                moment, versions, self._fingerprint(), _copied(dict(self._state)), self._gradients.now()
            )
        except _UnknownError:
            self._tensors = self._tensors or []

    def refresh(self) -> None:
        """Modules may have changed their parts: look at them again at the next mark."""
        self._tensors = None
        self._marked = None
        self._gradients.refresh()

    def state(self) -> dict[str, Any] | None:
        """The state of the last mark; None where there was none, or it is gone."""
        marked = self._marked
        if marked is None:
            return None
        try:
            if not self._is_still(marked):
                return None
        except _UnknownError:
            return None
        gradients = marked.gradients.state()
        if gradients is None:
            return None
        kept = self._moving.copies()
        return {
            **{name: capture(value, kept) for name, value in self._objects.items()},
            "gradients": gradients,
            "state": marked.state,
            **marked.moment,
        }

    def close(self) -> None:
        """Takes its hooks off the optimizers, and lets go of what it keeps."""
        for hook in self._hooks:
            hook.remove()
        self._tensors, self._marked, self._moving, self._firsts = None, None, _Moving(), _FirstValues([])

    def _note_step(self, *_: object) -> None:
        self._marked = None

    def _is_still(self, marked: _Marked) -> bool:
        assert self._tensors is not None
        now = self._find_tensors()
        if [each.identity for each in now] != [each.identity for each in self._tensors]:
            return False
        moved = {
            index for index, each in enumerate(now) if each.tensor._version != marked.versions[index]
        }  # fmt: skip
        same = moved <= self._moving.known and marked.others == self._fingerprint()
        return same and not self._firsts.have_changed()

    def _find_tensors(self) -> list[_Tensor]:
        """What the modules save. Raises _UnknownError where that is not parameters and buffers alone."""
        found: list[_Tensor] = []
        for module in self._modules:
            parts = {id(each) for each in (*module.parameters(), *module.buffers())}
            for name, each in module.state_dict(keep_vars=True).items():
                if id(each) not in parts or each.is_inference():
                    raise _UnknownError
                found.append(_Tensor((id(module), name), each, each.data_ptr()))
        return found

    def _fingerprint(self) -> list[Any]:
        seen: set[int] = set()
        found: list[Any] = []
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                for key, value in group.items():
                    if key != "params":
                        found.append(key)
                        found.extend(_parts_of(value, seen))
        for other in self._others:
            found.extend(_parts_of(other, seen))
        return found


@dataclass(frozen=True, slots=True)
class _Tensor:
    key: tuple[int, str]
    tensor: torch.Tensor
    place: int
    """Where its values were when it was found: `parameter.data = ...` gives it others."""

    @property
    def identity(self) -> tuple[tuple[int, str], int, int]:
        return self.key, id(self.tensor), self.place


@dataclass(frozen=True, slots=True)
class _Marked:
    moment: Mapping[str, Any]
    versions: list[int]
    others: list[Any]
    state: dict[str, Any]
    gradients: GradientsNow


class _Moving:
    """Copies of small buffers, and of others that were seen to change from one mark to the next."""

    def __init__(self) -> None:
        self.known: set[int] = set()
        self._bytes = 0
        self._versions: list[int] | None = None
        self._groups: dict[Any, tuple[list[tuple[int, str]], list[torch.Tensor], list[torch.Tensor]]] = {}

    def keep(self, tensors: list[_Tensor], versions: list[int]) -> None:
        """Copies what is known to move, as it is now. Raises _UnknownError where that is too much."""
        before = self._versions or versions
        for index, each in enumerate(tensors):
            tensor = each.tensor
            if index in self.known or isinstance(tensor, nn.Parameter):
                continue
            if tensor.nbytes > _SMALL and versions[index] == before[index]:
                continue
            self.known.add(index)
            self._bytes += tensor.nbytes
            keys, sources, copies = self._groups.setdefault((tensor.device, tensor.dtype), ([], [], []))
            keys.append(each.key)
            sources.append(tensor)
            copies.append(torch.empty_like(tensor))
        self._versions = versions
        if self._bytes > _MOST_BYTES:
            raise _UnknownError
        with torch.no_grad():
            for _, sources, copies in self._groups.values():
                torch._foreach_copy_(copies, sources)

    def copies(self) -> Kept:
        """The copies, by where they belong."""
        return {
            key: copy
            for keys, _, copies in self._groups.values()
            for key, copy in zip(keys, copies, strict=True)
        }  # fmt: skip


class _FirstValues:
    """One value of each parameter. PyTorch does not count who writes through `.data`, as averages of weights are
    often made and put in the place of the weights; that changes all of a parameter, and so also this one."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._kinds: dict[Any, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for tensor in tensors:
            if isinstance(tensor, nn.Parameter) and tensor.numel():
                first = tensor.detach()[(0,) * tensor.dim()]
                live, copies = self._kinds.setdefault((tensor.device, tensor.dtype), ([], []))
                live.append(first)
                copies.append(torch.empty_like(first))

    def note(self) -> None:
        """They are as they are to be."""
        with torch.no_grad():
            for live, copies in self._kinds.values():
                torch._foreach_copy_(copies, live)

    def have_changed(self) -> bool:
        """Whether any of them is another now."""
        return any(
            not torch.equal(torch.stack(live), torch.stack(copies)) for live, copies in self._kinds.values()
        )


class _UnknownError(Exception):
    """There is something that may change without being noticed, or that is too large to be kept."""


def _parts_of(value: Any, seen: set[int]) -> Iterator[Any]:
    """Plain values that differ once anything in `value` has changed. Raises _UnknownError if some might not."""
    if isinstance(value, _PLAIN):
        yield value
    elif isinstance(value, torch.Tensor):
        if value.is_inference():
            raise _UnknownError
        yield id(value)
        yield value._version
    elif isinstance(value, _BY_IDENTITY):
        yield id(value)
    elif id(value) not in seen:
        seen.add(id(value))
        if len(seen) > _MOST_PARTS:
            raise _UnknownError
        yield id(value)
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield key
                yield from _parts_of(item, seen)
        elif isinstance(value, (list, tuple)):
            yield len(value)
            for item in value:
                yield from _parts_of(item, seen)
        elif isinstance(value, torch.amp.GradScaler):  # what it notes of one iteration is no state of it
            kept = {key: item for key, item in vars(value).items() if key != "_per_optimizer_states"}
            for key, item in kept.items():
                yield key
                yield from _parts_of(item, seen)
        elif hasattr(value, "__dict__"):
            yield from _parts_of(vars(value), seen)
        else:
            raise _UnknownError


def _copied(value: Any, budget: list[int] | None = None) -> Any:
    """A copy of a small state of plain values. Raises _UnknownError for a large one, and for what is none."""
    left = [_MOST_PARTS] if budget is None else budget
    left[0] -= value.size if isinstance(value, np.ndarray) else 1
    if isinstance(value, torch.Tensor):
        left[0] -= value.numel()
    if left[0] < 0:
        raise _UnknownError
    if isinstance(value, (_PLAIN, np.generic)):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) is dict:
        return {key: _copied(item, left) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item, left) for item in value)
    raise _UnknownError
