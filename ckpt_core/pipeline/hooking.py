"""The hooks of one manager: those that the code gives, those of a `ckpt.toml`, the save policy; and what the audit
trail hears of them, so that `ckpt hooks` and `ckpt doctor` can tell in another process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from ckpt_core.errors import UsageError
from ckpt_core.hooks import BaseHook, HookManager
from ckpt_core.hooks.configured import HookFile, find_hook_file, read_hook_file
from ckpt_core.model import Attempt
from ckpt_core.pipeline.sole import SoleWriter
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.policies import SavePolicy, SavePolicyHook
from ckpt_core.stores import LocalStore, Store

__all__ = ["HookRecord", "gather", "hook_file_for"]

_log = logging.getLogger("ckpt_core.hooks")


def hook_file_for(store: Store, named: str | os.PathLike[str] | Literal[False] | None) -> HookFile | None:
    """The file with hooks that holds for a store: the one that is named, or else the one that is found; None where
    there is none, or where it is not to be looked for (False). Raises UsageError."""
    if named is False:
        return None
    if named is None:
        # Beside the store, not in it: what somebody hands over with a store must not run here.
        return find_hook_file(store.root.parent if isinstance(store, LocalStore) else None)
    if not isinstance(named, (str, os.PathLike)):
        raise UsageError(
            f"hooks_file={named!r}: give the path of a ckpt.toml, or False for none", kind="option"
        )
    return read_hook_file(Path(named))


def gather(
    hooks: Iterable[BaseHook],
    store: Store,
    named: str | os.PathLike[str] | Literal[False] | None,
    save_policy: SavePolicy | None,
) -> HookManager:
    """All hooks that a manager begins with, registered in that order. Raises UsageError."""
    manager = HookManager(hooks)
    file = hook_file_for(store, named)
    if file is not None:
        for hook in file.make_all():
            manager.register_hook(hook)
        _log.info("hooks of %s: %s", file.path, ", ".join(each.use for each in file.hooks) or "none")
    if save_policy is not None:
        manager.register_hook(SavePolicyHook(save_policy))
    return manager


class HookRecord:
    """Writes down which hooks were at work in an attempt, how they fared, and when one was left out.

    Nothing is written where there are none but the engine's own.
    """

    def __init__(self, workspace: Workspace, experiment: str, hooks: HookManager) -> None:
        self._workspace = workspace
        self._experiment = experiment
        self._hooks = hooks

    def serve(self, owner: Any, sole: SoleWriter | None) -> None:
        """Tells the hooks whose they are. What one of them raises leaves the store closed, and to whoever wants it."""
        try:
            self._hooks.serve(owner, self.tell)
        except BaseException:
            if sole is not None:
                sole.close()
            self._workspace.close()
            raise

    def tell(self, name: str, outcome: str, reason: str) -> None:
        """A hook is left out, or works again."""
        self._workspace.audit("hook", name, outcome, experiment=self._experiment, reason=reason)

    def note(self, attempt: Attempt | None, outcome: Literal["begun", "ended"]) -> None:
        """An attempt has made its first save, or has ended."""
        rows = self._hooks.table()
        if attempt is not None and any(row["source"] != "built in" for row in rows):
            facts: dict[str, Any] = {"attempt": attempt.number, "hooks": rows}
            self._workspace.audit("hooks", self._experiment, outcome, **facts)
