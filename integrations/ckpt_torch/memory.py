"""What the objects of a data loader remember from one sample to the next, found by looking at them.

Generators of their own and numbers that change can be put back; a container that grows or an iterator
that is held cannot. Global random states are `rng.py`'s; what follows from either is `loader.py`'s.
"""

from __future__ import annotations

import collections
import functools
import random
import sys
import types
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch

from ckpt_torch.rng import is_generator, read_generator, write_generator

__all__ = ["Memory"]

MOST_OBJECTS = 2_000
"""An object graph is looked at up to here: a safeguard against datasets that hold half of a program."""
MOST_ITEMS = 64
"""Containers up to this length are looked into; of longer ones only the length is watched."""
DEEPEST = 8

_OPEN = ("torch.utils.data", "torchvision", "torch.nn")
_CLOSED = sys.stdlib_module_names | {
    "torch", "numpy", "pandas", "pyarrow", "polars", "PIL", "cv2", "h5py", "scipy", "sklearn", "jax",
    "transformers", "tokenizers", "lightning", "lightning_fabric", "pytorch_lightning", "torchmetrics",
    "ckpt_core", "ckpt_torch", "ckpt_lightning",
}  # fmt: skip
_MISSING = object()


class Memory:
    """Looks through `roots` once, and from then on reads and writes what it found there.

    Paths name things as a person would, `dataset.transform.rng`, and are the same in every process that
    builds the same objects. Not seen: what C extensions hide, and large arrays that are written to.
    """

    def __init__(self, roots: Mapping[str, object]) -> None:
        self.generators: dict[str, Any] = {}
        self._numbers: dict[str, tuple[Any, Any]] = {}
        self._sizes: dict[str, Any] = {}
        self._iterators: list[str] = []
        self._seen: dict[int, object] = {}
        self._globals: set[tuple[int, str]] = set()
        for name, root in roots.items():
            self._visit(name, root, 0)
        del self._seen, self._globals

    def read(self) -> dict[str, Any]:
        """States of the generators and values of the numbers, as plain values that can be compared."""
        return {
            "generators": {path: read_generator(each) for path, each in self.generators.items()},
            "numbers": self.read_numbers(),
        }

    def read_numbers(self) -> dict[str, Any]:
        """The numbers found; those that have since become something else are left out."""
        found = ((path, _get(owner, key)) for path, (owner, key) in self._numbers.items())
        return {path: value for path, value in found if _is_number(value)}

    def write(self, state: Mapping[str, Any], *, numbers: frozenset[str] = frozenset()) -> list[str]:
        """Put back the generators, and of the numbers those named. Returns the paths that are not there.

        Only numbers that were seen to change are a memory; the others are settings, and stay.
        """
        absent: list[str] = []
        for path, value in state.get("generators", {}).items():
            if path in self.generators:
                write_generator(self.generators[path], value)
            else:
                absent.append(path)
        for path in sorted(numbers & state.get("numbers", {}).keys()):
            if path in self._numbers:
                owner, key = self._numbers[path]
                owner[key] = state["numbers"][path]
            else:
                absent.append(path)
        return absent

    def sizes(self) -> dict[str, int]:
        """The lengths of the containers found: those that grow remember something we cannot put back."""
        return {path: len(container) for path, container in self._sizes.items()}

    @property
    def iterators(self) -> tuple[str, ...]:
        """Where an iterator is held, whose position nobody can read."""
        return tuple(self._iterators)

    def _visit(self, path: str, value: Any, depth: int) -> None:
        if value is None or id(value) in self._seen or depth > DEEPEST or len(self._seen) > MOST_OBJECTS:
            return
        self._seen[id(value)] = value  # also keeps it alive, so that no other gets its id
        if is_generator(value):
            if value is not torch.default_generator and value is not getattr(random, "_inst", None):
                self.generators[path] = value
        elif isinstance(value, (str, bytes, torch.Tensor, np.ndarray, np.generic, type, types.ModuleType)):
            return
        elif isinstance(value, (dict, list, tuple, set, frozenset, collections.deque)):
            self._visit_container(path, value, depth)
        elif isinstance(value, types.MethodType):
            self._visit(path.rpartition(".")[0] or path, value.__self__, depth)
            self._visit(path, value.__func__, depth + 1)
        elif isinstance(value, types.FunctionType):
            self._visit_function(path, value, depth)
        elif isinstance(value, functools.partial):
            self._visit(path, value.func, depth + 1)
            self._visit(f"{path}.args", value.args, depth + 1)
            self._visit(f"{path}.keywords", value.keywords, depth + 1)
        elif isinstance(value, Iterator) and type(value).__module__ != "_io":
            self._iterators.append(path)
        else:
            self._visit_object(path, value, depth)

    def _visit_container(self, path: str, value: Any, depth: int) -> None:
        if not isinstance(value, (tuple, frozenset)):
            self._sizes[path] = value
        if len(value) > MOST_ITEMS or isinstance(value, (set, frozenset)):
            return
        if isinstance(value, dict):
            self._visit_members(value, lambda key: f"{path}[{key!r}]", depth)
            return
        for index, item in enumerate(value):
            if _is_number(item):
                if not isinstance(value, tuple):
                    self._numbers[f"{path}[{index}]"] = (value, index)
            else:
                self._visit(f"{path}[{index}]", item, depth + 1)

    def _visit_members(self, members: MutableMapping[Any, Any], name: Any, depth: int) -> None:
        for key, item in list(members.items()):
            if _is_number(item):
                self._numbers[name(key)] = (members, key)
            else:
                self._visit(name(key), item, depth + 1)

    def _visit_object(self, path: str, value: Any, depth: int) -> None:
        kind = type(value)
        if _is_closed(kind.__module__):
            return
        members = getattr(value, "__dict__", None)
        if isinstance(members, dict):
            self._visit_members(members, lambda key: f"{path}.{key}", depth)
        for base in kind.__mro__:
            if base.__module__.partition(".")[0] in _CLOSED:
                continue
            for slot in getattr(base, "__slots__", ()):
                self._visit(f"{path}.{slot}", getattr(value, slot, None), depth + 1)
            for name, member in vars(base).items():
                function = getattr(member, "__func__", member)
                if isinstance(function, types.FunctionType):
                    self._visit_function(f"{path}.{name}", function, depth + 1)

    def _visit_function(self, path: str, function: types.FunctionType, depth: int) -> None:
        if function.__module__ is None or _is_closed(function.__module__):
            return
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                self._visit(f"{path}:{name}", cell.cell_contents, depth + 1)
            except ValueError:  # not bound yet
                continue
        self._visit(f"{path}:defaults", function.__defaults__, depth + 1)
        # A process that was spawned knows the script by another name.
        module = function.__module__.replace("__mp_main__", "__main__")
        for name in function.__code__.co_names:
            item = function.__globals__.get(name, _MISSING)
            where = f"{module}.{name}"
            if item is _MISSING or (id(function.__globals__), name) in self._globals:
                continue
            self._globals.add((id(function.__globals__), name))
            if _is_number(item):
                self._numbers[where] = (function.__globals__, name)
            else:
                self._visit(where, item, depth + 1)


def _is_number(value: object) -> bool:
    return type(value) in (int, float, bool)


def _is_closed(module: str) -> bool:
    return module.partition(".")[0] in _CLOSED and not module.startswith(_OPEN)


def _get(owner: Any, key: Any) -> Any:
    try:
        return owner[key]
    except (KeyError, IndexError):
        return None
