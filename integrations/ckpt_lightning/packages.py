"""Lightning comes as two packages whose classes are not interchangeable: which are there, and their classes.

Nothing is imported here until a class is asked for.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec

from ckpt_core import MissingExtraError, UsageError

__all__ = ["PACKAGES", "bases", "present"]

PACKAGES: dict[str, dict[str, str]] = {
    "lightning.pytorch": {
        "Checkpoint": "lightning.pytorch.callbacks",
        "CheckpointIO": "lightning.fabric.plugins",
    },
    "pytorch_lightning": {
        "Checkpoint": "pytorch_lightning.callbacks",
        "CheckpointIO": "lightning_fabric.plugins",
    },
}


def present() -> tuple[str, ...]:
    """The packages that this program uses: those it has imported, or else the first that is installed.

    Raises MissingExtraError.
    """
    imported = tuple(name for name in PACKAGES if name in sys.modules)
    if imported:
        return imported
    for name in PACKAGES:
        if find_spec(name.partition(".")[0]) is not None:
            return (name,)
    raise MissingExtraError(
        "Lightning is not installed: pip install 'ckpt-core[lightning]'", extra="lightning"
    )


def bases(kind: str, packages: tuple[str, ...]) -> tuple[type, ...]:
    """The packages' own classes of that name. Raises UsageError, MissingExtraError."""
    found = []
    for package in packages:
        if package not in PACKAGES:
            raise UsageError(f"{package!r} is not a package of Lightning; there are {', '.join(PACKAGES)}")
        try:
            found.append(getattr(importlib.import_module(PACKAGES[package][kind]), kind))
        except ImportError as error:
            raise MissingExtraError(
                f"{package} cannot be imported ({error}): pip install {package.partition('.')[0]}",
                extra="lightning",
            ) from error
    return tuple(found)
