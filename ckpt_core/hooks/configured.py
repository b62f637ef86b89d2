"""Hooks that a file names: `ckpt.toml`, where it is looked for, and what it may say.

    [[hooks]]
    use = "tensor-health"
    priority = "low"
    most = 1e4

A file names hooks that are installed, and nothing else: no module, no path, no code. But among what is installed may
be one that runs a command: a file that nobody has named must be ours. Bad files are UsageErrors.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ckpt_core.config import environment
from ckpt_core.errors import UsageError
from ckpt_core.hooks.base import BaseHook
from ckpt_core.hooks.installed import make_hook, shortened

__all__ = ["FILE", "VARIABLE", "ConfiguredHook", "HookFile", "find_hook_file", "read_hook_file"]

FILE = "ckpt.toml"
VARIABLE = "CKPT_CONFIG"

_LARGEST = 64 << 10
_DEEPEST = 16
_OWN = ("use", "enabled")


@dataclass(frozen=True, slots=True)
class ConfiguredHook:
    """One `[[hooks]]` of a file. `number` counts from 1."""

    number: int
    use: str
    options: Mapping[str, Any] = field(default_factory=dict)
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class HookFile:
    """A file that was read."""

    path: Path
    hooks: tuple[ConfiguredHook, ...] = ()

    def make(self, each: ConfiguredHook) -> BaseHook:
        """The hook that one entry means. Raises UsageError, which names file and key."""
        try:
            made = make_hook(each.use, each.options)
        except UsageError as error:
            option = error.facts.get("option")
            key = f"hooks[{each.number}].{shortened(option) if option else 'use'}"
            raise _unusable(self.path, key, str(error)) from error
        made.source = FILE
        return made

    def make_all(self) -> list[BaseHook]:
        """Those that are enabled, in the order of the file."""
        return [self.make(each) for each in self.hooks if each.enabled]


def find_hook_file(beside: Path | None) -> HookFile | None:
    """The file that holds here: what CKPT_CONFIG names, or `ckpt.toml` in the working directory, or in the folder
    `beside`, in which the store lies. Only the first of them counts; None where there is none.

    Raises UsageError where CKPT_CONFIG names nothing, where others than its owner could have written what was found,
    and as `read_hook_file` does.
    """
    named = environment(VARIABLE)
    if named is not None:
        if not _is_there(Path(named)):
            raise UsageError(
                f"{VARIABLE} is {named!r}, and there is no such file: correct it, or unset it",
                kind="config",
                path=named,
            )
        return read_hook_file(Path(named))
    folders: list[Path] = []
    with suppress(OSError):  # the folder that this process works in was deleted
        folders.append(Path.cwd())
    if beside is not None:
        folders.append(beside)
    found = next((folder / FILE for folder in folders if _is_there(folder / FILE)), None)
    return None if found is None else read_hook_file(found, named=False)


def read_hook_file(path: Path, *, named: bool = True) -> HookFile:
    """What a file says. Nothing is imported for it. One that nobody has `named` must be ours.

    Raises UsageError, which names the file, the key, what may be.
    """
    document = _document(path, named)
    for key in document:
        if key != "hooks":
            _refuse(path, shortened(key), "it is not known; a file may have [[hooks]] and nothing else")
    tables = document.get("hooks", [])
    if not isinstance(tables, list):
        _refuse(path, "hooks", "it must be a list of tables, each headed [[hooks]]")
    found = [_entry(path, number, table) for number, table in enumerate(tables, 1)]
    return HookFile(path, tuple(found))


def _entry(path: Path, number: int, table: Any) -> ConfiguredHook:
    key = f"hooks[{number}]"
    if not isinstance(table, dict):
        _refuse(path, key, "it must be a table, headed [[hooks]]")
    use, enabled = table.get("use"), table.get("enabled", True)
    if not isinstance(use, str) or not use:
        _refuse(path, f"{key}.use", 'it must name a hook that is installed, as use = "tensor-health"')
    if not isinstance(enabled, bool):
        _refuse(path, f"{key}.enabled", f"{shortened(enabled)} does not do: write true or false")
    options = {name: value for name, value in table.items() if name not in _OWN}
    for name, value in options.items():
        if _depth(value) > _DEEPEST:
            _refuse(path, f"{key}.{shortened(name)}", f"it is nested more than {_DEEPEST} deep")
    return ConfiguredHook(number, use, options, enabled)


def _document(path: Path, named: bool) -> dict[str, Any]:
    try:
        with _opened(path) as number:
            _check(path, os.fstat(number), named)
            with open(number, "rb", closefd=False) as file:
                data = file.read(_LARGEST + 1)
    except OSError as error:
        raise UsageError(
            f"{path}: it cannot be read: {error.strerror or error}; correct its permissions, or name another file "
            f"by {VARIABLE}",
            kind="config",
            path=str(path),
        ) from error
    if len(data) > _LARGEST:
        _refuse(path, "", f"it is larger than {_LARGEST >> 10} KiB: is it the file that you mean?")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _unusable(path, "", f"it is not UTF-8 text: {error}") from error
    except RecursionError as error:
        raise _unusable(path, "", "it is nested too deep") from error
    except ValueError as error:  # TOMLDecodeError is one, and so is a number with too many digits
        raise _unusable(path, "", f"it is not TOML: {error}") from error


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= _DEEPEST:
        depth += 1
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # nobody may ever write to a pipe
    try:
        yield number
    finally:
        os.close(number)


def _check(path: Path, found: os.stat_result, named: bool) -> None:
    """Of the file that is open: what is at its path may be another by now."""
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISCHR(found.st_mode)):  # /dev/null is fine
        _refuse(path, "", "it is no file")
    if named:
        return
    if found.st_uid not in (os.geteuid(), 0):
        why = "belongs to another user"
    elif found.st_mode & stat.S_IWOTH:
        why = "can be changed by every user"
    elif found.st_mode & stat.S_IWGRP and found.st_gid != found.st_uid:
        # A group of the same number was made for its user, who is alone in it.
        why = "can be changed by a group"
    else:
        return
    raise UsageError(
        f"{path} {why}, and hooks may run commands: set its owner and mode right (chmod go-w), or name it in "
        f"{VARIABLE} if you trust it ({VARIABLE}=/dev/null leaves it alone)",
        kind="config",
        path=str(path),
    )


def _is_there(path: Path) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # a NUL in it
        return False


def _refuse(path: Path, key: str, why: str) -> NoReturn:
    raise _unusable(path, key, why)


def _unusable(path: Path, key: str, why: str) -> UsageError:
    where = f"{path}: {key}: " if key else f"{path}: "
    return UsageError(f"{where}{why}", kind="config", path=str(path), key=key or None)
