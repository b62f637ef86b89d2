"""What a source of data remembers from one batch to the next, found by looking at its objects.

Generators of its own, counters, and orders of indices can be put back; a container that grows or an iterator
that is held cannot. Global random states are `rng.py`'s; what follows from either is `feeds.py`'s.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import random
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ckpt_keras.rng import Stream, is_generator, reseed, stream_of

__all__ = ["Memory"]

MOST_OBJECTS = 2_000
"""An object graph is looked at up to here: a safeguard against data that holds half of a program."""
MOST_ITEMS = 64
"""Containers up to this length are looked into; of longer ones only the length is watched."""
LONGEST_ORDER = 1 << 24
"""Indices that an order may have to be kept."""
_DEEPEST = 8
_CLOSED = sys.stdlib_module_names | {
    "numpy", "keras", "jax", "jaxlib", "torch", "tensorflow", "flax", "grain", "pandas", "pyarrow", "polars", "PIL",
    "cv2", "h5py", "scipy", "sklearn", "datasets", "ckpt_core", "ckpt_keras",
}  # fmt: skip


class _Cell(NamedTuple):
    """A place that holds a value: the attribute of an object, a variable of a function."""

    read: Callable[[], Any]
    write: Callable[[Any], None]


class Memory:
    """Looks through `roots` once, and from then on reads and writes what it found there.

    Paths name things as a person would, `data.indices`, and are the same in every process that builds the same
    objects. Not seen: what C extensions hide, and arrays that are no order of indices.
    """

    def __init__(self, roots: Mapping[str, object]) -> None:
        self._generators: dict[str, Any] = {}
        self._streams: dict[str, Stream] = {}
        self._values: dict[str, _Cell] = {}
        self._orders: dict[str, _Cell] = {}
        self._containers: dict[str, Any] = {}
        self._iterators: list[str] = []
        self._seen: dict[int, object] = {}
        for name, root in roots.items():
            self._visit(name, root, 0)
        del self._seen
        self._first_values = {path: cell.read() for path, cell in self._values.items()}
        self._first_orders: dict[str, bytes] = {}
        self._changed: set[str] = set()
        for path, cell in self._orders.items():
            order = cell.read()
            self._first_orders[path] = _fingerprint(order)
            if np.unique(order).size == order.size:  # indices, maybe shuffled already; labels come twice
                self._changed.add(path)

    def read(self) -> dict[str, Any]:
        """Generators, and the counters that have changed since this memory was made; others are settings."""
        values = {path: cell.read() for path, cell in self._values.items()}
        self._changed.update(path for path, value in values.items() if value != self._first_values[path])
        streams = {path: stream.read() for path, stream in self._streams.items()}
        return {"streams": streams, "values": {p: v for p, v in values.items() if p in self._changed}}

    def read_orders(self) -> dict[str, Any]:
        """Copies of the orders of indices; of those with an index twice only where they have changed since."""
        orders = {path: cell.read() for path, cell in self._orders.items()}
        self._changed.update(p for p, order in orders.items() if _fingerprint(order) != self._first_orders[p])
        return {path: order for path, order in orders.items() if path in self._changed}

    def write(self, state: Mapping[str, Any]) -> list[str]:
        """Put back what was read, orders under `orders` among it. Returns the paths that are not here."""
        absent = []
        for path, value in state.get("streams", {}).items():
            if path in self._streams:
                self._streams[path].write(value)
            else:
                absent.append(path)
        for path, value in {**state.get("values", {}), **state.get("orders", {})}.items():
            cell = self._values.get(path) or self._orders.get(path)
            if cell is None:
                absent.append(path)
            else:
                self._changed.add(path)
                cell.write(value)
        return absent

    def reseed(self, seed: Callable[[str], int]) -> None:
        """Begin each generator found anew, with the seed that is given for its path."""
        for path, generator in self._generators.items():
            reseed(generator, seed(path))

    def grown(self) -> dict[str, int]:
        """The lengths of the containers found: those that grow remember something we cannot put back."""
        return {path: len(container) for path, container in self._containers.items()}

    @property
    def iterators(self) -> tuple[str, ...]:
        """Where an iterator is held, whose position nobody can read."""
        return tuple(self._iterators)

    # -- looking ----------------------------------------------------------------------------------

    def _visit(self, path: str, value: Any, depth: int) -> None:
        if value is None or id(value) in self._seen or depth > _DEEPEST or len(self._seen) > MOST_OBJECTS:
            return
        self._seen[id(value)] = value  # also keeps it alive, so that no other gets its id
        if is_generator(value):
            if value is not getattr(random, "_inst", None):
                self._generators[path] = value
                self._streams[path] = stream_of(value)
        elif isinstance(value, (str, bytes, np.generic, type, types.ModuleType)):
            return
        elif _is_order(value):
            self._orders[path] = _Cell(lambda: np.array(value), functools.partial(_assign, value))
        elif isinstance(value, (dict, list, tuple, set, frozenset, collections.deque)):
            self._visit_container(path, value, depth)
        elif isinstance(value, types.MethodType):
            self._visit(path, value.__self__, depth)
            self._visit(f"{path}()", value.__func__, depth + 1)
        elif isinstance(value, types.FunctionType):
            self._visit_function(path, value, depth)
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self._visit(path, part, depth + 1)
        elif isinstance(value, types.GeneratorType):
            frame = value.gi_frame
            for name, item in frame.f_locals.items() if frame is not None else ():
                self._visit(f"{path}:{name}", item, depth + 1)  # read only: its variables cannot be set
            self._visit_globals(value.gi_code, frame.f_globals if frame is not None else {}, depth)
        elif isinstance(value, Iterator) and type(value).__module__ != "_io":
            self._iterators.append(path)
        elif not _is_closed(type(value).__module__):
            self._visit_object(path, value, depth)

    def _visit_container(self, path: str, value: Any, depth: int) -> None:
        if not isinstance(value, (tuple, frozenset)):
            self._containers[path] = value
        if len(value) > MOST_ITEMS or isinstance(value, (set, frozenset)):
            return
        if isinstance(value, dict):
            self._visit_members(value, path, "[{!r}]", depth)
            return
        for index, item in enumerate(value):
            self._visit(f"{path}[{index}]", item, depth + 1)

    def _visit_object(self, path: str, value: Any, depth: int) -> None:
        self._visit_members(getattr(value, "__dict__", {}), path, ".{}", depth)
        for base in type(value).__mro__:
            if _is_closed(base.__module__):
                continue
            for slot in getattr(base, "__slots__", ()):
                self._visit(f"{path}.{slot}", getattr(value, slot, None), depth + 1)
            for name, member in vars(base).items():
                function = getattr(member, "__func__", member)
                if isinstance(function, types.FunctionType):
                    self._visit_function(f"{path}.{name}", function, depth + 1)

    def _visit_members(self, members: Any, path: str, form: str, depth: int) -> None:
        if len(members) > MOST_ITEMS:
            return
        for key in list(members):
            read, write = functools.partial(members.get, key), functools.partial(members.__setitem__, key)
            self._visit_variable(path + form.format(key), _Cell(read, write), depth)

    def _visit_function(self, path: str, function: types.FunctionType, depth: int) -> None:
        if _is_closed(function.__module__ or "builtins"):
            return
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                _ = cell.cell_contents
            except ValueError:  # not bound yet
                continue
            read = functools.partial(getattr, cell, "cell_contents")
            write = functools.partial(setattr, cell, "cell_contents")
            self._visit_variable(f"{path}:{name}", _Cell(read, write), depth)
        for default in function.__defaults__ or ():
            self._visit(f"{path}:defaults", default, depth + 1)
        self._visit_globals(function.__code__, function.__globals__, depth)

    def _visit_globals(self, code: types.CodeType, space: dict[str, Any], depth: int) -> None:
        # A process that was spawned knows the script by another name.
        module = str(space.get("__name__")).replace("__mp_main__", "__main__")
        for name in code.co_names:
            if name in space:
                read, write = functools.partial(space.get, name), functools.partial(space.__setitem__, name)
                self._visit_variable(f"{module}.{name}", _Cell(read, write), depth)

    def _visit_variable(self, path: str, cell: _Cell, depth: int) -> None:
        value = cell.read()
        if type(value) in (int, float, bool):
            self._values.setdefault(path, cell)
        elif _is_order(value) and id(value) not in self._seen:
            # Through the variable, as many give it a new array where others shuffle the one they have.
            self._seen[id(value)] = value
            self._orders[path] = _Cell(
                lambda: np.array(cell.read()), functools.partial(_assign_variable, cell)
            )
        else:
            self._visit(path, value, depth + 1)


def _is_order(value: object) -> bool:
    """Indices that may be shuffled."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind in "iu" and 1 < value.size <= LONGEST_ORDER
    if not isinstance(value, list) or not 1 < len(value) <= LONGEST_ORDER:
        return False
    return all(type(index) is int for index in value) and np.array(value).dtype.kind == "i"


def _assign_variable(cell: _Cell, value: np.ndarray[Any, Any]) -> None:
    there = cell.read()
    if _is_order(there) and len(there) == len(value) and getattr(there, "flags", value.flags).writeable:
        _assign(there, value)  # in place: others may hold it, too
    else:
        cell.write(value.tolist() if isinstance(there, list) else np.array(value))


def _assign(order: Any, value: np.ndarray[Any, Any]) -> None:
    order[:] = value.tolist() if isinstance(order, list) else value


def _fingerprint(order: np.ndarray[Any, Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(order).data).digest()


def _is_closed(module: str) -> bool:
    return module.partition(".")[0] in _CLOSED
