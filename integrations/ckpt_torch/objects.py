"""What a plain training loop is made of, as state and back: anything with `state_dict`.

Gradients are `gradients.py`'s, random states `rng.py`'s, data `loader.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ckpt_core.errors import StateMismatchError, UsageError
from ckpt_torch.gradients import Gradients
from ckpt_torch.wrappers import plain_name, unwrapped, walk

__all__ = [
    "Gradients",
    "Kept",
    "capture",
    "check",
    "mend_dtypes",
    "plain_name",
    "restore",
    "unwrapped",
    "walk",
]

Kept = Mapping[tuple[int, str], torch.Tensor]
"""Values to be captured in place of what modules hold: by the `id` of the module, and the name in its state."""


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


def capture(value: Any, kept: Kept | None = None) -> Any:
    """The state of an object, or of a list or dict of them. Tensors in it are the live ones, but for those kept."""
    if isinstance(value, Mapping) and not hasattr(value, "state_dict"):
        return {key: capture(item, kept) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [capture(item, kept) for item in value]
    if value is None:
        return None
    item = unwrapped(value)
    state = item.state_dict()
    if not isinstance(item, nn.Module):
        return state
    instead = kept or {}
    return {plain_name(key): instead.get((id(item), key), each) for key, each in state.items()}


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
