"""What is inside of wrappers and containers: the modules and other objects themselves, each with its path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

__all__ = ["plain_name", "unwrapped", "walk"]

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
