"""Which storage backends there are: those under the entry-point group `ckpt_core.backends`, by name."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from ckpt_core.backends.contract import StorageBackend
from ckpt_core.errors import CkptError, MissingExtraError, UsageError

__all__ = ["GROUP", "as_backend", "find_backend", "guess_backend", "installed_backends"]

GROUP = "ckpt_core.backends"
"""The entry-point group: each names a StorageBackend, which is made without arguments."""

NATIVE = "native"

_log = logging.getLogger("ckpt_core.backends")


def installed_backends() -> dict[str, EntryPoint]:
    """The backends that are installed, by name. Nothing of theirs is imported."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def find_backend(name: str) -> StorageBackend:
    """The backend of that name. Raises UsageError for one that is not installed or cannot be made, MissingExtraError
    for one whose framework is not installed."""
    entry = installed_backends().get(name)
    if entry is None:
        raise UsageError(
            f"there is no storage backend {name!r} here: it is one of {', '.join(installed_backends())}, or install "
            "the package that has it",
            kind="backend",
            backend=name,
        )
    try:
        return _checked(entry.load()(), entry.value)
    except ImportError as error:
        raise MissingExtraError(
            f"the storage backend {name!r} needs what is not installed here ({error}): install the package of its "
            "framework",
            backend=name,
        ) from error
    except CkptError:
        raise
    except Exception as error:  # somebody's package
        raise UsageError(
            f"the storage backend {name!r} ({entry.value}) cannot be made: {type(error).__name__}: {error}",
            kind="backend",
            backend=name,
        ) from error


def as_backend(backend: str | StorageBackend) -> StorageBackend | None:
    """The backend that a caller means, by name or itself; None for the engine's own packs. Raises UsageError."""
    if backend == NATIVE:
        return None
    if isinstance(backend, str):
        return find_backend(backend)
    return _checked(backend, repr(backend))


def guess_backend(path: Path) -> StorageBackend:
    """The backend for a file or folder, by what is there, or by the name that a new one is to have.

    Those of the core are asked first, as they import no framework. Raises UsageError.
    """
    installed = installed_backends()
    for name in sorted(installed, key=lambda name: not installed[name].value.startswith("ckpt_core.")):
        try:
            backend = find_backend(name)
        except CkptError as error:
            _log.debug("not asked about %s: %s", path, error)
            continue
        if backend.suffix and not path.exists():
            if path.name.endswith(backend.suffix):
                return backend
        elif _recognises(backend, path):
            return backend
    raise UsageError(
        f"the name of {path} does not tell its format: say format= (--format), one of {', '.join(installed)}",
        kind="format",
        path=str(path),
    )


def _recognises(backend: StorageBackend, path: Path) -> bool:
    try:
        return backend.recognises(path)
    except Exception as error:  # somebody's package, which is asked about files of all others
        _log.warning("the storage backend %r cannot tell what %s is: %s", backend.name, path, error)
        return False


def _checked(backend: object, where: str) -> StorageBackend:
    if not isinstance(backend, StorageBackend):
        raise UsageError(f"{where} is no storage backend: it must be a StorageBackend", kind="backend")
    name = getattr(backend, "name", None)
    if not isinstance(name, str) or not 0 < len(name) <= 100 or not name.isprintable():
        raise UsageError(
            f"the name of the storage backend {type(backend).__name__} must be a short text", kind="backend"
        )
    return backend
