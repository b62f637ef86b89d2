"""Every error that this engine raises on purpose.

One class for each thing that a caller can do about it; `kind` names the cause. Each inherits the
builtin that fits, carries its facts as attributes, and says in its message what to do next.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "CatalogError",
    "CkptError",
    "CorruptionError",
    "FormatError",
    "HookError",
    "MissingExtraError",
    "NotFoundError",
    "ObjectExistsError",
    "ObjectNotFoundError",
    "SaveFailedError",
    "SaveNotDoneError",
    "SignatureError",
    "StateError",
    "StateMismatchError",
    "StoreError",
    "UsageError",
]


class CkptError(Exception):
    """Base of all errors of this engine.

    `kind` is a short, stable word for the cause (programs may test it; messages may change).
    Facts given as keyword arguments become attributes: `error.step`, `error.path`, `error.digest`.
    """

    default_kind: ClassVar[str] = "error"

    def __init__(self, message: str, *, kind: str | None = None, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind or self.default_kind
        self.facts = facts

    def __getattr__(self, name: str) -> Any:
        facts = self.__dict__.get("facts")
        if facts is not None and name in facts:
            return facts[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __str__(self) -> str:
        return self.message


class UsageError(CkptError, ValueError):
    """An argument cannot mean anything: correct the call. Nothing was changed."""

    default_kind = "usage"


class StateError(CkptError, TypeError):
    """The state holds something that cannot be saved. `path` says where; nothing was written."""

    default_kind = "no-codec"


class StateMismatchError(CkptError, ValueError):
    """A checkpoint does not fit the structure it was to be loaded into. `paths` says where."""

    default_kind = "structure"


class NotFoundError(CkptError, LookupError):
    """No store, experiment, checkpoint or tensor answers to that name."""

    default_kind = "checkpoint"


class CorruptionError(CkptError, ValueError):
    """Stored bytes are not the bytes that were written. They were not returned as data."""

    default_kind = "digest"


class SignatureError(CkptError, ValueError):
    """Nobody who is trusted signed this checkpoint as it is. It was not loaded.

    Of kind `unsigned`, `untrusted` (others signed it) or `forged` (the signature does not fit).
    """

    default_kind = "untrusted"


class FormatError(CkptError, ValueError):
    """The bytes are intact, but of a format that this version does not read or write."""

    default_kind = "newer"


class StoreError(CkptError, OSError):
    """The store refused: full, read-only, no permission, or an input/output error."""

    default_kind = "io"


UNREADABLE = frozenset({"io", "not-a-file", "link"})
"""Kinds of StoreError that are damage to one object, where the store is well otherwise."""


class ObjectNotFoundError(StoreError, FileNotFoundError):
    """The store has no object under that key."""

    default_kind = "absent"


class ObjectExistsError(StoreError, FileExistsError):
    """The store already has an object under that key, and was told not to replace it."""

    default_kind = "exists"


class CatalogError(CkptError, RuntimeError):
    """The catalog cannot be used. The store is untouched; `ckpt reindex` rebuilds the catalog."""

    default_kind = "database"


class SaveNotDoneError(CkptError, RuntimeError):
    """A save was asked for and deliberately not made: `vetoed`, `skipped`, `replaced`, `closed`."""

    default_kind = "skipped"


class SaveFailedError(CkptError, RuntimeError):
    """Saves failed while training went on, and `on_save_error` asked to be told so. `steps` says which."""

    default_kind = "failed"


class HookError(CkptError, RuntimeError):
    """A hook registered with `on_error="raise"` raised, or ran past its time limit."""

    default_kind = "raised"


class MissingExtraError(CkptError, ImportError):
    """An optional dependency is not installed; the message names the pip command."""

    default_kind = "extra"
