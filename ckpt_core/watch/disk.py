"""Room on the disk that saves go to, looked at before each."""

from __future__ import annotations

import logging
import shutil
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Unpack

from ckpt_core.errors import UsageError
from ckpt_core.hooks import BaseHook, HookContext, HookEvent, HookOptions, HookPriority
from ckpt_core.policies import parse_bytes
from ckpt_core.stores import LocalStore
from ckpt_core.watch.watcher import Manager

__all__ = ["DiskSpaceGuard"]

_log = logging.getLogger("ckpt_core.watch")


class DiskSpaceGuard(BaseHook):
    """Keeps `keep_free` bytes (or a text, as `"10 GiB"`) free on a disk: a save that would leave less is refused.

    A save is counted with all of its tensors, though what did not change is not written again. `path`: a folder on
    the disk in question; left out, that of the manager's store. `action`: `veto`, or `warn` only. The room that is
    left after each look is a metric, `disk/free`. Raises UsageError, also where the store is on no disk.
    """

    events = (HookEvent.BEFORE_SAVE,)
    priority = HookPriority.CRITICAL

    def __init__(
        self,
        keep_free: int | str = "1 GiB",
        *,
        path: Path | None = None,
        action: Literal["warn", "veto"] = "veto",
        **options: Unpack[HookOptions],
    ) -> None:
        super().__init__(**options)
        if action not in ("warn", "veto"):
            raise UsageError(f"action={action!r} must be 'warn' or 'veto'", kind="option")
        self.keep_free = parse_bytes(keep_free)
        self.path = None if path is None else Path(path)
        self.action = action
        self._folder: Path | None = self.path
        self._manager: Callable[[], Manager | None] | None = None

    def attach(self, owner: Any) -> None:
        self._manager = weakref.ref(owner)
        store = owner.workspace.repository.store
        if self.path is None and not isinstance(store, LocalStore):
            raise UsageError(
                f"{self.name} looks after the disk of a local store, and {store.url} is none: name a folder on the "
                "disk to look after, as path='/scratch'",
                kind="option",
            )
        self._folder = store.root if self.path is None else self.path

    def execute(self, context: HookContext) -> bool | None:
        manager = self._manager() if self._manager is not None else None
        if self._folder is None:
            raise UsageError(f"{self.name} belongs to no manager: name a folder with path=", kind="option")
        free = shutil.disk_usage(self._folder).free
        tensors: Mapping[str, Any] = context.tensors or {}
        needed = sum(values.nbytes for values in tensors.values())
        if manager is not None and context.step is not None:
            manager.log({"disk/free": free}, step=context.step)
        if free - needed >= self.keep_free:
            return None
        said = (
            f"{free:,} bytes are free on the disk of {self._folder}; a save of {needed:,} would leave less than the "
            f"{self.keep_free:,} to be kept free: delete something, or prune the store"
        )
        if self.action == "veto":
            return context.veto(said)
        _log.warning("%s at step %s: %s", self.name, context.step, said)
        return None
