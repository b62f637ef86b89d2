"""`ckpt_path="last"`, taught to Lightning.

Lightning decides what "last" is before it calls any callback, and looks at the files of its own ModelCheckpoint
only. Where a trainer has none of those, but a callback of ours, the word is left as it is, for us to understand.
Other trainers notice nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["teach_last"]

_TAUGHT = "_ckpt_taught"


def teach_last(package: str, behaviour: type) -> None:
    """Has the trainers of a package understand "last" where they have a callback of the class `behaviour`."""
    connector = importlib.import_module(f"{package}.trainer.connectors.checkpoint_connector")
    kind = connector._CheckpointConnector
    if hasattr(kind, _TAUGHT):
        return
    original = kind._parse_ckpt_path
    theirs = importlib.import_module(f"{package}.callbacks")
    files = (theirs.ModelCheckpoint, theirs.OnExceptionCheckpoint)

    def parse(self: Any, state_fn: Any, ckpt_path: Any, *args: Any, **kwargs: Any) -> Any:
        callbacks = self.trainer.callbacks
        ours = any(isinstance(each, behaviour) for each in callbacks)
        if ckpt_path == "last" and ours and not any(isinstance(each, files) for each in callbacks):
            return ckpt_path
        return original(self, state_fn, ckpt_path, *args, **kwargs)

    kind._parse_ckpt_path = parse
    setattr(kind, _TAUGHT, True)
