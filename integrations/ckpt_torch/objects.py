"""What a plain training loop is made of, as state and back: anything with `state_dict`, and its gradients.

Random states are `rng.py`'s, data `loader.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ckpt_core.errors import StateMismatchError, UsageError

__all__ = ["Gradients", "capture", "check", "mend_dtypes", "plain_name", "restore", "unwrapped", "walk"]

_COMPILED = "_orig_mod."


def unwrapped(value: Any) -> Any:
    """The module inside of `torch.compile`, DataParallel or DDP, so that names do not depend on them."""
    while isinstance(value, nn.Module):
        inner = getattr(value, "_orig_mod", None)
        if inner is None and isinstance(value, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = value.module
        if inner is None:
            break
        value = inner
    return value


def plain_name(name: str) -> str:
    """The name of a weight as it is without `torch.compile`, which puts a word before those of what it compiles."""
    return name.replace(f".{_COMPILED}", ".").removeprefix(_COMPILED) if _COMPILED in name else name


def walk(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The objects in `value`, which may be a list or dict of them, with their paths."""
    if isinstance(value, Mapping) and not hasattr(value, "state_dict"):
        for key, item in value.items():
            yield from walk(f"{name}/{key}", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from walk(f"{name}/{index}", item)
    elif value is not None:
        yield name, unwrapped(value)


def check(objects: Mapping[str, Any]) -> None:
    """Raises UsageError for an object that cannot be saved and restored by `state_dict`."""
    for name, value in objects.items():
        for path, item in walk(name, value):
            if not all(callable(getattr(item, each, None)) for each in ("state_dict", "load_state_dict")):
                raise UsageError(
                    f"{path} is a {type(item).__name__}, which has no state_dict and load_state_dict; "
                    "keep plain values in the dict that is given as state=",
                    kind="object",
                    name=path,
                )


def capture(value: Any) -> Any:
    """The state of an object, or of a list or dict of them. Tensors in it are the live ones."""
    if isinstance(value, Mapping) and not hasattr(value, "state_dict"):
        return {key: capture(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [capture(item) for item in value]
    if value is None:
        return None
    item = unwrapped(value)
    state = item.state_dict()
    return {plain_name(key): each for key, each in state.items()} if isinstance(item, nn.Module) else state


def restore(name: str, value: Any, state: Any) -> None:
    """Put an object, or a list or dict of them, into a state that was captured. Raises StateMismatchError."""
    if isinstance(value, Mapping) and not hasattr(value, "state_dict"):
        pairs = [(f"{name}/{key}", item, state, key) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        pairs = [(f"{name}/{index}", item, state, index) for index, item in enumerate(value)]
    else:
        if value is not None:
            _load(name, unwrapped(value), state)
        return
    if not isinstance(state, Mapping if isinstance(value, Mapping) else Sequence) or len(state) != len(value):
        raise StateMismatchError(f"{name} is not what it was when the checkpoint was made", paths=(name,))
    for path, item, container, key in pairs:
        try:
            part = container[key]
        except KeyError:
            raise StateMismatchError(f"the checkpoint has no {path}", paths=(path,)) from None
        restore(path, item, part)


def _load(name: str, item: Any, state: Any) -> None:
    try:
        if isinstance(item, nn.Module):
            names = {plain_name(key): key for key in item.state_dict()}
            item.load_state_dict({names.get(key, key): each for key, each in state.items()})
        elif isinstance(item, torch.optim.Optimizer):
            item.load_state_dict(state)
        else:
            item.load_state_dict(_in_types_of(state, item.state_dict()))
    except (RuntimeError, ValueError, KeyError) as error:
        raise StateMismatchError(
            f"{name} ({type(item).__name__}) does not take the state in the checkpoint: {error}",
            paths=(name,),
        ) from error
    if isinstance(item, torch.optim.Optimizer):
        mend_dtypes(item, state)


def _in_types_of(state: Any, like: Any) -> Any:
    """`state`, its dicts of the same types as those in `like`: MultiStepLR cannot do without its Counter."""
    if not isinstance(state, dict) or not isinstance(like, Mapping):
        return state
    items = {key: _in_types_of(item, like.get(key)) for key, item in state.items()}
    try:
        return items if type(like) is dict else type(like)(items)  # type: ignore[call-arg]
    except TypeError:
        return items


def mend_dtypes(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Put back what `load_state_dict` has cast to the dtype of its parameter, and was kept in another."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        live = optimizer.state.get(parameter, {})
        for key, saved in state["state"].get(number, {}).items():
            there = live.get(key)
            if (
                isinstance(saved, torch.Tensor)
                and isinstance(there, torch.Tensor)
                and saved.dtype != there.dtype
            ):
                live[key] = saved.to(device=there.device, copy=True)


class Gradients:
    """Whether gradients at a safe point are worth keeping, and how they come back.

    Those of an optimizer that made no step in the last iteration are the sum of what was accumulated, and
    are saved. After a step they will be cleared before they are used; only which parameters had one is
    kept, since an optimizer passes over a parameter without a gradient but not over one whose gradient is
    zero.
    """

    def __init__(self, objects: Mapping[str, Any]) -> None:
        items = [pair for name, value in objects.items() for pair in walk(name, value)]
        self._modules = {path: item for path, item in items if isinstance(item, nn.Module)}
        optimizers = [item for _, item in items if isinstance(item, torch.optim.Optimizer)]
        self._hooks = [optimizer.register_step_post_hook(self._note_step) for optimizer in optimizers]
        self._stepped: set[int] = set()

    def begin_iteration(self) -> None:
        """An iteration of the training loop begins."""
        self._stepped.clear()

    def capture(self) -> dict[str, Any]:
        """The gradients that are accumulated, and the names of the other parameters that have one."""
        parameters = list(self._parameters())
        holding = {name: each.grad for name, each in parameters if each.grad is not None}
        spent = {name for name, each in parameters if id(each) in self._stepped}
        everything = len(holding) == len(parameters) and holding.keys() <= spent
        return {
            "accumulated": {name: grad for name, grad in holding.items() if name not in spent},
            "held": True if everything else sorted(spent & holding.keys()),
        }

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
                    yield f"{path}/{name}", parameter

    def _note_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._stepped.update(id(each) for group in optimizer.param_groups for each in group["params"])
