"""What the other callbacks of a fit remember: the attributes that have changed since it began, and back.

They reset themselves when a fit begins, and are told of an epoch's beginning again when it is gone on with in its
midst: so what they remember is put back after that.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ckpt_keras.codec import assign
from ckpt_keras.rng import is_generator, stream_of

__all__ = ["Companions"]

_log = logging.getLogger("ckpt_core.keras")

_LEFT_ALONE = {"params", "_model", "model", "monitor_op", "min_delta"}
"""Keras' own; the last two are set up together by the first epoch's end, which cannot be restored by halves."""
_STATELESS = ("ProgbarLogger", "TensorBoard")
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_MOST_ITEMS = 100_000
_NOTHING = object()


class Companions:
    """The callbacks in `callbacks`, but for `ours`, told apart by class and order.

    A callback with `get_state()` and `set_state(state)` is asked for what it remembers. Of any other its attributes
    are looked at: plain values and containers of them, arrays, generators of random numbers, and the variables of
    metrics and other objects of Keras.
    """

    def __init__(self, callbacks: Sequence[Any], ours: Sequence[Any]) -> None:
        count: Counter[str] = Counter()
        self._callbacks: dict[str, Any] = {}
        for callback in callbacks:
            kind = type(callback).__name__
            if any(callback is each for each in ours) or kind in _STATELESS:
                continue
            count[kind] += 1
            self._callbacks[f"{kind}-{count[kind]}"] = callback
        self._begin = {
            name: {key: _mark(value) for key, value in _attributes(callback)}
            for name, callback in self._callbacks.items()
            if not _is_asked(callback)
        }
        self._told: set[str] = set()

    def capture(self) -> dict[str, Any]:
        """By callback: its own `state`, or the `attributes` that have changed and the `variables` of objects."""
        return {name: self._capture(name, callback) for name, callback in self._callbacks.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `capture` gave. What cannot be is told in the log."""
        for name, saved in state.items():
            callback = self._callbacks.get(name)
            if callback is None:
                if any(saved.values()):
                    _log.warning(
                        "the checkpoint has the state of a callback %s, and there is none here", name
                    )
                continue
            if "state" in saved:
                if _is_asked(callback):
                    callback.set_state(saved["state"])
                continue
            for key, value in saved["attributes"].items():
                _put(callback, key, value)
            for key, values in saved["variables"].items():
                variables = _variables(getattr(callback, key, None))
                if len(variables) != len(values):
                    _log.warning("%s.%s is not what it was, and is not restored", name, key)
                    continue
                for variable, value in zip(variables, values, strict=True):
                    assign(variable, value)

    def _capture(self, name: str, callback: Any) -> dict[str, Any]:
        if _is_asked(callback):
            return {"state": callback.get_state()}
        begin = self._begin[name]
        attributes, variables = {}, {}
        for key, value in _attributes(callback):
            found = _variables(value)
            if found:
                variables[key] = found
            elif not _same(begin.get(key, _NOTHING), value):
                if _storable(value):
                    attributes[key] = stream_of(value).read() if is_generator(value) else value
                else:
                    self._tell(name, key, callback, value)
        return {"attributes": attributes, "variables": variables}

    def _tell(self, name: str, key: str, callback: Any, value: Any) -> None:
        where = f"{name}.{key}"
        if where not in self._told and not type(callback).__module__.startswith("keras."):
            self._told.add(where)
            _log.warning(
                "%s has changed and cannot be saved, as it is a %s: give the callback get_state() and set_state(state) "
                "if a resume depends on it", where, type(value).__name__,
            )  # fmt: skip


def _is_asked(callback: Any) -> bool:
    return all(callable(getattr(callback, name, None)) for name in ("get_state", "set_state"))


def _attributes(callback: Any) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in vars(callback).items() if key not in _LEFT_ALONE]


def _variables(value: Any) -> list[Any]:
    """The variables of an object of Keras, or of some of them; none for anything else, and for whole models."""
    if isinstance(value, keras.Variable):
        return [value]
    if isinstance(value, keras.Metric):
        return list(value.variables)
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, keras.Metric) for v in value):
        return [variable for metric in value for variable in metric.variables]
    return []


def _storable(value: Any, depth: int = 0) -> bool:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind not in "OV"
    if type(value) in _PLAIN or is_generator(value):
        return True
    if depth > 8 or type(value) not in (list, tuple, dict) or len(value) > _MOST_ITEMS:
        return False
    if isinstance(value, dict):
        return all(type(key) in (str, int, float, bool) for key in value) and _storable(
            list(value.values()), depth + 1
        )
    return all(_storable(item, depth + 1) and not is_generator(item) for item in value)


def _mark(value: Any) -> Any:
    """What is kept of a value to see later whether it has changed. Containers and arrays change in place."""
    if isinstance(value, np.ndarray) and value.dtype.kind not in "OV":
        return ("array", value.dtype.str, value.shape, _digest(value))
    if is_generator(value):
        return ("generator", stream_of(value).read())
    if isinstance(value, dict) and _storable(value):
        return ("dict", [(key, _mark(item)) for key, item in value.items()])
    if isinstance(value, (list, tuple)) and _storable(value):
        return (type(value).__name__, [_mark(item) for item in value])
    if isinstance(value, (*_PLAIN, np.generic)):
        return ("plain", type(value).__name__, repr(value))
    return ("object", value)


def _same(mark: Any, value: Any) -> bool:
    if mark is _NOTHING:
        return False
    now = _mark(value)
    if now[0] == "object" or mark[0] == "object":
        return bool(now[0] == mark[0] and now[1] is mark[1])
    return bool(now == mark)


def _digest(value: np.ndarray[Any, Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(value).view(np.uint8).data).digest() if value.size else b""


def _put(callback: Any, key: str, value: Any) -> None:
    there = getattr(callback, key, None)
    if is_generator(there):
        stream_of(there).write(value)
    elif isinstance(there, np.ndarray) and isinstance(value, np.ndarray) and _fits(there, value):
        there[...] = value  # others may hold it, too
    elif type(there) is list and type(value) is list:
        there[:] = value
    elif type(there) is dict and isinstance(value, dict):
        there.clear()
        there.update(value)
    else:
        setattr(callback, key, value)


def _fits(there: np.ndarray[Any, Any], value: np.ndarray[Any, Any]) -> bool:
    return there.shape == value.shape and there.dtype == value.dtype and there.flags.writeable
