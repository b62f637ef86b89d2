"""Hooks by name: which are installed, under the entry-point group `ckpt_core.hooks`, and how one is made of options.

An entry point names a subclass of BaseHook, a function that returns a hook, or a function under `@hook`. To be
installed is not to be at work: somebody must name it, in code or in a `ckpt.toml`.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import typing
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import msgspec

from ckpt_core.errors import UsageError
from ckpt_core.hooks.base import BaseHook, as_events
from ckpt_core.hooks.events import HookPriority

__all__ = ["COMMON", "GROUP", "Option", "installed_hooks", "is_own", "make_hook", "options_of", "shortened"]

GROUP = "ckpt_core.hooks"
"""The entry-point group of hooks."""

COMMON = ("name", "events", "priority", "timeout", "on_error", "max_failures", "retry_after")
"""What can be said of every hook, besides the options that its factory takes."""

_LONGEST = 60


class Option(typing.NamedTuple):
    """One option that a hook takes: its type as it is written in the code, and its default."""

    name: str
    type: Any
    default: Any
    required: bool


def installed_hooks() -> dict[str, EntryPoint]:
    """The hooks that are installed, by name. Nothing of theirs is imported."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def is_own(entry: EntryPoint) -> bool:
    """Whether it came along with the engine."""
    return entry.dist is not None and entry.dist.name == "ckpt-core"


def make_hook(name: str, options: Mapping[str, Any] | None = None) -> BaseHook:
    """The hook installed under `name`, made with `options`; its own and those that all hooks have.

    Options are checked against the types that its factory declares, as they come from a file: numbers, texts,
    lists, tables. Raises UsageError (kind `hook`), whose `option` names the one that cannot be.
    """
    factory = _load(name)
    given = dict(options or {})
    common = {key: given.pop(key) for key in COMMON if key in given}
    if isinstance(factory, BaseHook):
        if given:
            raise _refused(name, next(iter(given)), f"it has no options but {', '.join(COMMON)}")
        made: object = copy.copy(factory)  # the one in its module is everybody's
    else:
        arguments = _checked(name, given, {option.name: option for option in options_of(factory)})
        try:
            made = factory(**arguments)
        except UsageError as error:
            raise UsageError(f"hook {name!r}: {error}", **{**error.facts, "kind": "hook"}) from error
        except Exception as error:
            raise UsageError(f"hook {name!r} cannot be made: {error!r}", kind="hook", hook=name) from error
    if not isinstance(made, BaseHook):
        raise UsageError(
            f"hook {name!r} cannot be made: its entry point gives {type(made).__name__}, which is no BaseHook",
            kind="hook",
            hook=name,
        )
    made.name = name
    made.source = "built in" if is_own(installed_hooks()[name]) else "entry point"
    for key, value in common.items():
        setattr(made, key, _common(name, key, value))
    return made


def options_of(factory: Callable[..., object]) -> list[Option]:
    """What a factory takes by keyword, without what all hooks have."""
    try:
        parameters = inspect.signature(factory, eval_str=True).parameters.values()
    except Exception as error:  # somebody's annotations, which may name what is not there
        raise UsageError(
            f"the options of {factory!r} cannot be told: {error}; give its arguments types that can be evaluated",
            kind="hook",
        ) from error
    return [
        Option(
            each.name,
            Any if each.annotation is each.empty else each.annotation,
            each.default,
            each.default is each.empty,
        )
        for each in parameters
        if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)
        and each.name not in (*COMMON, "condition")
    ]


def _load(name: str) -> Any:
    known = installed_hooks()
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(
            f"no hook {shortened(name)} is installed; {meant}installed are: {', '.join(known) or 'none'}",
            kind="hook",
            hook=name,
        )
    try:
        loaded = known[name].load()
    except Exception as error:  # somebody's code
        raise UsageError(
            f"hook {name!r} of {known[name].value} cannot be loaded: {error!r}", kind="hook", hook=name
        ) from error
    if not callable(loaded):
        raise UsageError(
            f"hook {name!r} of {known[name].value} is neither a hook nor a function that returns one",
            kind="hook",
            hook=name,
        )
    return loaded


def _checked(name: str, given: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    arguments = {}
    for key, value in given.items():
        if key not in known:
            raise _refused(name, key, f"its options are {', '.join([*known, *COMMON])}")
        try:
            arguments[key] = msgspec.convert(value, known[key].type, dec_hook=_of_text)
        except msgspec.ValidationError as error:
            raise _refused(name, key, f"{shortened(value)} does not do: {error}") from error
        except (TypeError, NotImplementedError) as error:
            raise _refused(name, key, "it can be given in code only") from error
    missing = [option.name for option in known.values() if option.required and option.name not in given]
    if missing:
        raise _refused(name, missing[0], "it has to be given")
    return arguments


def _of_text(kind: Any, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(kind)


def _common(name: str, key: str, value: Any) -> Any:
    if key == "priority":
        known = {priority.name.lower(): priority for priority in HookPriority}
        if not isinstance(value, str) or value.lower() not in known:
            raise _refused(name, key, f"{shortened(value)} does not do: choose one of {', '.join(known)}")
        return known[value.lower()]
    if key == "events":
        try:
            return as_events(value if isinstance(value, str) else msgspec.convert(value, list[str]))
        except (UsageError, msgspec.ValidationError) as error:
            raise _refused(name, key, f"{shortened(value)} does not do: {error}") from error
    kinds: dict[str, Any] = {
        "name": str,
        "timeout": float,
        "on_error": typing.Literal["isolate", "raise"],
        "max_failures": int,
        "retry_after": float,
    }
    try:
        return msgspec.convert(value, kinds[key])
    except msgspec.ValidationError as error:
        raise _refused(name, key, f"{shortened(value)} does not do: {error}") from error


def shortened(value: object) -> str:
    """A value out of a file, as a message can hold it."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _refused(name: str, option: str, why: str) -> UsageError:
    return UsageError(
        f"hook {name!r}, option {shortened(option)}: {why}", kind="hook", hook=name, option=option
    )
