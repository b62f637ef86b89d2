"""What the objects behind a data pipeline remember from one batch to the next, found by looking at them.

Generators, counters, keys and index orders can be put back. What for, and when, is `data.py`'s.
"""

from __future__ import annotations

import functools
import hashlib
import random
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ckpt_core.streams import Stream, is_generator, stream_of

__all__ = ["Memory"]

MOST_OBJECTS = 5_000
"""An object graph is looked at up to here: a safeguard against data that holds half of a program."""
MOST_ITEMS = 64
"""Containers up to this length are looked into."""
LONGEST_ORDER = 1 << 24
"""Indices that an order may have to be kept."""
_LARGEST_KEY = 64
_DEEPEST = 8
_CLOSED = sys.stdlib_module_names | {
    "numpy", "jax", "jaxlib", "flax", "optax", "equinox", "torch", "tensorflow", "pandas", "pyarrow",
    "polars", "PIL", "cv2", "h5py", "scipy", "sklearn", "datasets", "grain", "ckpt_core", "ckpt_jax",
}  # fmt: skip


class _Cell(NamedTuple):
    """A place that holds a value: the attribute of an object, a variable of a function."""

    read: Callable[[], Any]
    write: Callable[[Any], None]


class Memory:
    """Looks through `root` once, and from then on reads and writes what it found there.

    Paths name things as a person would, `data.order`, and are the same in every process that builds the same
    objects. Not seen: what C extensions hide, containers that grow, arrays that are no order of indices.
    """

    def __init__(self, root: object) -> None:
        self.streams: dict[str, Stream] = {}
        self._values: dict[str, _Cell] = {}
        self._orders: dict[str, _Cell] = {}
        self._seen: dict[int, object] = {}
        self._visit("data", root, 0)
        del self._seen
        self._first_values = {path: cell.read() for path, cell in self._values.items()}
        self._first_orders: dict[str, bytes] = {}
        self._changed: set[str] = set()
        for path, cell in self._orders.items():
            order = cell.read()
            self._first_orders[path] = _fingerprint(order)
            if np.unique(order).size == order.size:  # maybe shuffled before anybody looked; labels are not
                self._changed.add(path)

    def read(self) -> dict[str, Any]:
        """The counters and keys that have changed since this memory was made; the others are settings."""
        return self._read(self._values, lambda path, value: _differs(value, self._first_values[path]))

    def read_orders(self) -> dict[str, Any]:
        """Copies of the orders of indices: those with each index once, and those that have changed since this
        memory was made; the others are labels."""
        return self._read(self._orders, lambda path, value: _fingerprint(value) != self._first_orders[path])

    def write(self, values: Mapping[str, Any]) -> list[str]:
        """Put back what was read. Returns the paths that are not here."""
        absent = []
        for path, value in values.items():
            cell = self._values.get(path) or self._orders.get(path)
            if cell is None:
                absent.append(path)
            else:
                self._changed.add(path)
                cell.write(value)
        return absent

    def _read(self, cells: Mapping[str, _Cell], changed: Callable[[str, Any], bool]) -> dict[str, Any]:
        values = {path: cell.read() for path, cell in cells.items()}
        self._changed.update(path for path, value in values.items() if changed(path, value))
        return {path: value for path, value in values.items() if path in self._changed}

    def _visit(self, path: str, value: Any, depth: int) -> None:
        if value is None or id(value) in self._seen or depth > _DEEPEST or len(self._seen) > MOST_OBJECTS:
            return
        self._seen[id(value)] = value  # also keeps it alive, so that no other gets its id
        if is_generator(value):
            if value is not getattr(random, "_inst", None):
                self.streams[path] = stream_of(value)
        elif isinstance(value, (str, bytes, np.generic, type, types.ModuleType)):
            return
        elif _is_order(value):
            self._orders[path] = _Cell(lambda: np.array(value), functools.partial(_assign, value))
        elif isinstance(value, dict):
            self._visit_members(value, path, "[{!r}]", depth)
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value[:MOST_ITEMS]):
                self._visit(f"{path}[{index}]", item, depth + 1)
        elif isinstance(value, types.MethodType):
            self._visit(path, value.__self__, depth)
            self._visit(f"{path}()", value.__func__, depth + 1)
        elif isinstance(value, types.FunctionType):
            self._visit_function(path, value, depth)
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self._visit(path, part, depth + 1)
        elif isinstance(value, types.GeneratorType) and value.gi_frame is not None:
            for name, item in value.gi_frame.f_locals.items():  # read only: its variables cannot be set
                self._visit(f"{path}:{name}", item, depth + 1)
        elif not _is_closed(type(value).__module__):
            self._visit_object(path, value, depth)

    def _visit_object(self, path: str, value: Any, depth: int) -> None:
        self._visit_members(getattr(value, "__dict__", {}), path, ".{}", depth)
        for base in type(value).__mro__:
            if _is_closed(base.__module__):
                continue
            for name, member in vars(base).items():
                function = getattr(member, "__func__", member)
                if isinstance(function, types.FunctionType):
                    self._visit_function(f"{path}.{name}", function, depth + 1)

    def _visit_members(self, members: dict[Any, Any], path: str, form: str, depth: int) -> None:
        if len(members) > MOST_ITEMS:
            return
        for key in list(members):
            self._visit_variable(
                path + form.format(key),
                _Cell(functools.partial(members.get, key), functools.partial(members.__setitem__, key)),
                depth,
            )

    def _visit_function(self, path: str, function: types.FunctionType, depth: int) -> None:
        if _is_closed(function.__module__ or "builtins"):
            return
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                _ = cell.cell_contents
            except ValueError:  # not bound yet
                continue
            read = functools.partial(getattr, cell, "cell_contents")
            self._visit_variable(
                f"{path}:{name}", _Cell(read, functools.partial(setattr, cell, "cell_contents")), depth
            )
        for default in function.__defaults__ or ():
            self._visit(f"{path}:defaults", default, depth + 1)
        space = function.__globals__
        for name in function.__code__.co_names:
            if name in space:
                cells = _Cell(functools.partial(space.get, name), functools.partial(space.__setitem__, name))
                self._visit_variable(f"{function.__module__}.{name}", cells, depth)

    def _visit_variable(self, path: str, cell: _Cell, depth: int) -> None:
        value = cell.read()
        if _is_value(value):
            self._values.setdefault(path, cell)
        else:
            self._visit(path, value, depth + 1)


def _is_value(value: object) -> bool:
    """A number, or a random key: what is replaced when it changes."""
    return type(value) in (int, float, bool) or (isinstance(value, jax.Array) and value.size <= _LARGEST_KEY)


def _is_order(value: object) -> bool:
    """Indices that may be shuffled in place."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind in "iu" and 1 < value.size <= LONGEST_ORDER
    if not isinstance(value, list) or not 1 < len(value) <= LONGEST_ORDER:
        return False
    return all(type(index) is int for index in value) and np.array(value).dtype.kind == "i"


def _assign(order: Any, value: np.ndarray[Any, Any]) -> None:
    order[:] = value.tolist() if isinstance(order, list) else value


def _fingerprint(order: np.ndarray[Any, Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(order).data).digest()


def _differs(value: Any, first: Any) -> bool:
    if isinstance(value, jax.Array) or isinstance(first, jax.Array):
        return value is not first
    return bool(value != first)


def _is_closed(module: str) -> bool:
    return module.partition(".")[0] in _CLOSED
