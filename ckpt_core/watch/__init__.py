"""Hooks that come with the engine and look at what is saved: at tensors, stores, checkpoints.

Each is found by its name in the entry-point group `ckpt_core.hooks`, the door that a third party's uses, and
imported when somebody names it. What hooks are, and who runs them, is `ckpt_core.hooks`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpt_core.watch.disk import DiskSpaceGuard as DiskSpaceGuard
    from ckpt_core.watch.grids import GridMonitor as GridMonitor
    from ckpt_core.watch.health import TensorHealth as TensorHealth
    from ckpt_core.watch.quaternions import QuaternionCheck as QuaternionCheck
    from ckpt_core.watch.telling import EventLog as EventLog
    from ckpt_core.watch.telling import RunCommand as RunCommand
    from ckpt_core.watch.telling import Webhook as Webhook
    from ckpt_core.watch.upload import UploadCheckpoints as UploadCheckpoints
    from ckpt_core.watch.watcher import Sight as Sight
    from ckpt_core.watch.watcher import TensorWatcher as TensorWatcher

_HOME = {
    "DiskSpaceGuard": "disk",
    "EventLog": "telling",
    "GridMonitor": "grids",
    "QuaternionCheck": "quaternions",
    "RunCommand": "telling",
    "Sight": "watcher",
    "TensorHealth": "health",
    "TensorWatcher": "watcher",
    "UploadCheckpoints": "upload",
    "Webhook": "telling",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
