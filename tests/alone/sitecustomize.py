"""Python that finds one framework alone, the one that KERAS_BACKEND names, whatever else is installed.

`make test-keras-torch` puts this folder on PYTHONPATH, so that every process of its tests is such a Python.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

FRAMEWORKS = {"jax", "tensorflow", "torch"}


def _without(hidden: set[str], find_spec: Any) -> Any:
    def found(
        cls: type[PathFinder], fullname: str, path: Sequence[str] | None = None, target: Any = None
    ) -> ModuleSpec | None:
        return None if fullname in hidden else find_spec(fullname, path, target)

    return classmethod(found)


PathFinder.find_spec = _without(FRAMEWORKS - {os.environ["KERAS_BACKEND"]}, PathFinder.find_spec)
