"""What an experiment was configured with: as plain data, value by value, and asked about.

The same few rules for whoever asks, the catalog by SQL or a program that looks at the store itself.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from ckpt_core.errors import UsageError

__all__ = [
    "LONGEST",
    "Condition",
    "Value",
    "conditions",
    "plain_configuration",
    "plain_text",
    "value_of",
    "values_of",
]

LONGEST = 255
"""Characters of a path, and of a text, up to which a value can be asked about."""

_DEEPEST = 50
_LARGEST = 4 << 20
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge,
}  # fmt: skip
_TEXT = re.compile(r"\s*([^=!<>]+?)\s*(==|=|!=|<=|>=|<|>)\s*(.*?)\s*", re.DOTALL)


class Value(NamedTuple):
    """One plain value. `kind` is `number`, `text`, `truth` or `none`; only values of one kind compare."""

    kind: str
    number: float | None = None
    text: str | None = None

    @property
    def comparable(self) -> float | str:
        """What decides among values of this kind."""
        return self.text if self.text is not None else self.number if self.number is not None else 0.0

    @property
    def plain(self) -> Any:
        """The value itself."""
        if self.kind == "truth":
            return bool(self.number)
        return self.text if self.text is not None else self.number


class Condition(NamedTuple):
    """That the value at a path is there and stands so to another one. `operation` is `=`, `!=`, `<`, …"""

    path: str
    operation: str
    value: Value

    def holds(self, configuration: Mapping[str, Any] | None) -> bool:
        """Whether a configuration is so."""
        for path, value in values_of(configuration or {}):
            if path == self.path:
                compare = _OPERATORS[self.operation]
                if value.kind != self.value.kind:
                    return self.operation == "!="
                return compare(value.comparable, self.value.comparable)
        return False


def plain_configuration(config: Any) -> dict[str, Any] | None:
    """A configuration as JSON can hold it: of a mapping, a dataclass or a namespace; None of None.

    What is neither that nor a list nor a plain value is there by its text. Raises UsageError for what has no
    names for its values, or takes more than 4 MiB.
    """
    if config is None:
        return None
    found = _plain(config, "", 0)
    if not isinstance(found, dict):
        raise UsageError(
            f"config={config!r} has no names for its values: give a dict, a dataclass or a namespace",
            kind="config",
        )
    if len(json.dumps(found)) > _LARGEST:
        raise UsageError(
            f"config= takes more than {_LARGEST >> 20} MiB as JSON: leave out what no one would look up",
            kind="config",
        )
    return found


def value_of(value: Any) -> Value | None:
    """A plain value to compare by; None of a container and of a text that is too long."""
    if value is None:
        return Value("none")
    if isinstance(value, bool):
        return Value("truth", float(value))
    if isinstance(value, (int, float)):
        try:
            number = float(value)
        except OverflowError:
            return None
        return Value("number", number) if math.isfinite(number) else value_of(str(number))
    if isinstance(value, str):
        return Value("text", text=value) if len(value) <= LONGEST else None
    return None


def values_of(configuration: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
    """(path, value) of everything that can be asked about; a path is `optimizer.lr` or `layers.0`."""
    seen: set[str] = set()
    for path, leaf in _leaves(configuration, ""):
        value = value_of(leaf)
        if value is not None and 0 < len(path) <= LONGEST and path not in seen:
            seen.add(path)
            yield path, value


def conditions(asked: Mapping[str, Any] | Iterable[str] | str) -> tuple[Condition, ...]:
    """The conditions of `{"optimizer.lr": 0.1}`, of `"optimizer.lr >= 0.01"`, or of several such texts.

    Raises UsageError.
    """
    if isinstance(asked, Mapping):
        return tuple(_condition(str(path), "=", value) for path, value in asked.items())
    texts = [asked] if isinstance(asked, str) else list(asked)
    return tuple(_parsed(text) for text in texts)


def _parsed(text: str) -> Condition:
    found = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise UsageError(
            f"{text!r} is no condition: write PATH=VALUE, as optimizer.lr=0.1, or with !=, <, <=, >, >=",
            kind="condition",
        )
    path, operation, said = found.groups()
    try:
        value = json.loads(said)
    except ValueError:
        value = {"True": True, "False": False, "None": None}.get(said, said)
    return _condition(path, "=" if operation == "==" else operation, value)


def _condition(path: str, operation: str, wanted: Any) -> Condition:
    value = value_of(_plain(wanted, path, 0))
    if value is None:
        raise UsageError(
            f"{path}: {wanted!r} is not a number, a text of up to {LONGEST} characters, true, false or null, by "
            "which a configuration could be found",
            kind="condition",
            path=path,
        )
    return Condition(path, operation, value)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    inside: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        inside = value.items()
    elif isinstance(value, (list, tuple)):
        inside = enumerate(value)
    else:
        yield path, value
        return
    for key, each in inside:
        yield from _leaves(each, f"{path}.{key}" if path else str(key))


def _plain(value: Any, path: str, depth: int) -> Any:
    if depth > _DEEPEST:
        raise UsageError(
            f"config: {path[:80]} is nested more than {_DEEPEST} deep, or holds itself",
            kind="config",
            path=path,
        )
    if value is None or isinstance(value, (bool, str)):
        return plain_text(value) if isinstance(value, str) else value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a scalar of numpy or of a framework
        value = value.item()
    if isinstance(value, int) and type(value).__module__ == "builtins":
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name, None) for each in dataclasses.fields(value)}
    elif isinstance(value, (Namespace, SimpleNamespace)):
        value = vars(value)
    if isinstance(value, Mapping):
        return {
            plain_text(str(key)): _plain(each, f"{path}.{key}" if path else str(key), depth + 1)
            for key, each in value.items()
        }
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=repr)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [_plain(each, f"{path}.{number}", depth + 1) for number, each in enumerate(value)]
    return plain_text(str(value))


def plain_text(text: str) -> str:
    """A text as JSON and every database can hold it: halves of characters and NULs as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")
