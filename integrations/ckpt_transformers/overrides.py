"""Methods of one object replaced for a while, and put back as they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core import UsageError

__all__ = ["Overrides"]

_ABSENT = object()


class Overrides:
    """Attributes set on one instance, before those of its class."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._earlier: dict[str, Any] = {}
        self._originals: dict[str, Any] = {}

    def put_all(self, values: Mapping[str, Any]) -> None:
        """Replaces attributes, or raises UsageError where one is not there."""
        missing = [name for name in values if not hasattr(self._owner, name)]
        if missing:
            raise UsageError(
                f"this version of transformers is not known here (its Trainer has no {', '.join(missing)}); "
                "use one from 5.3 on",
                kind="version",
            )
        for name, value in values.items():
            self.put(name, value)

    def put(self, name: str, value: Any) -> None:
        """Replaces an attribute."""
        self._earlier[name] = vars(self._owner).get(name, _ABSENT)
        self._originals[name] = getattr(self._owner, name)
        setattr(self._owner, name, value)

    def original(self, name: str) -> Any:
        """What was there before."""
        return self._originals[name]

    def remove(self, name: str) -> None:
        """Puts one attribute back, if it was replaced."""
        earlier = self._earlier.pop(name, None)
        if earlier is _ABSENT:
            vars(self._owner).pop(name, None)
        elif earlier is not None:
            setattr(self._owner, name, earlier)

    def remove_all(self) -> None:
        """Puts everything back."""
        for name in list(self._earlier):
            self.remove(name)
