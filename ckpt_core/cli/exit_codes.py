"""The exit codes of `ckpt`, which are restic's, and which of them an error means."""

from __future__ import annotations

from typing import Final

from ckpt_core.errors import (
    CatalogError,
    CkptError,
    CorruptionError,
    NotFoundError,
    SignatureError,
    StateMismatchError,
    StoreError,
    UsageError,
)

__all__ = [
    "BROKEN_PIPE",
    "CORRUPT",
    "FAILED",
    "INTERRUPTED",
    "LOCKED",
    "NO_STORE",
    "OK",
    "PARTIAL",
    "USAGE",
    "code_of",
]

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
PARTIAL: Final = 3
CORRUPT: Final = 4
NO_STORE: Final = 10
LOCKED: Final = 11
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
"""Not one of restic's: what a shell says of a program that the end of a pipe stopped."""


def code_of(error: CkptError) -> int:
    """The exit code that tells a script what it can do about an error."""
    if isinstance(error, UsageError) or (isinstance(error, StateMismatchError) and error.kind == "include"):
        return USAGE
    if isinstance(error, (CorruptionError, SignatureError)):
        return CORRUPT
    if isinstance(error, NotFoundError) and error.kind == "store":
        return NO_STORE
    if isinstance(error, StoreError) and error.kind == "not-a-folder":
        return NO_STORE
    if isinstance(error, (CatalogError, StoreError)) and error.kind == "locked":
        return LOCKED
    return FAILED
