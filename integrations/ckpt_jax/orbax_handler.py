"""For those who stay with Orbax: digests, a catalog, hooks and retention for the checkpoints that Orbax writes.

What is given to Orbax, and what its users hold. What happens then is `orbax_watch.py`'s.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Literal, Self, final

from ckpt_core import BaseHook, CheckpointManager, HookManager
from ckpt_core.policies import RetentionPolicy
from ckpt_jax import orbax_v0, orbax_v1
from ckpt_jax.orbax_retention import Preservation
from ckpt_jax.orbax_watch import Watch

__all__ = ["OrbaxHandler"]

_log = logging.getLogger("ckpt_core.orbax")


@final
class OrbaxHandler:
    """Watches over the checkpoints of `ocp.CheckpointManager` (v0) and `ocp.training.Checkpointer` (v1).

        watch = OrbaxHandler("checkpoints/catalog", experiment="digits", hooks=[...])
        manager = ocp.CheckpointManager(folder, handler_registry=watch.registry())   # the rest stays as it is

    `root`, `experiment`, `catalog`, `metric` and `mode` are those of `CheckpointManager`, which is `manager`
    here and holds one small record of each checkpoint. `hooks` hear BEFORE_SAVE when Orbax begins a save,
    AFTER_STAGE when an item's arrays are copied, AFTER_SAVE and NEW_BEST when the checkpoint has its final
    name and is recorded, SAVE_FAILED, BEFORE_LOAD, AFTER_LOAD, LOAD_FAILED, CORRUPTION_FOUND, BEFORE_DELETE
    (where `preservation` decides) and AFTER_DELETE. A save cannot be vetoed from inside Orbax.

    `verify`: whether every file of an item is checked before it is restored. With several processes, the
    first one records; each checks what it restores. Close it after the last manager that uses it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        experiment: str,
        catalog: str | None = None,
        metric: str | None = None,
        mode: Literal["min", "max"] = "min",
        hooks: Iterable[BaseHook] = (),
        verify: bool = True,
    ) -> None:
        self.hooks = HookManager(hooks)
        self.manager = CheckpointManager(
            root, experiment=experiment, catalog=catalog, metric=metric, mode=mode
        )
        self._watch = Watch(self.manager, self.hooks, verify=verify)
        self._closed = False

    @property
    def failures(self) -> list[tuple[int, BaseException]]:
        """(step, error) of every save that failed, or was made and could not be recorded."""
        return list(self._watch.failures)

    # -- what is given to Orbax -------------------------------------------------------------------

    def registry(self) -> Any:
        """For `ocp.CheckpointManager(handler_registry=...)`: Standard, PyTree, JSON, array and key items."""
        return orbax_v0.registry(self._watch)

    def handler(self, stock: type, **options: Any) -> Any:
        """For `ocp.Checkpointer(...)` and `ocp.AsyncCheckpointer(...)`: the same handler, watched over.

        `stock` is the class of one of Orbax's handlers, as `ocp.StandardCheckpointHandler`; `options` are its
        own. Raises UsageError for another class.
        """
        return orbax_v0.handler(self._watch, stock, **options)

    def context(self, base: Any = None) -> Any:
        """For Orbax v1: `with watch.context(): ...` or `Checkpointer(folder, context=watch.context())`."""
        return orbax_v1.context(self._watch, base)

    def preservation(self, *policies: RetentionPolicy) -> Preservation:
        """Retention policies of this engine as Orbax's `preservation_policy`. It keeps what is pinned, too."""
        return Preservation(policies, self.manager, self._watch.may_delete)

    # -- the end ----------------------------------------------------------------------------------

    def wait(self) -> None:
        """Waits until what Orbax has committed so far is recorded and its hooks have run; drops the records of
        what has been deleted since."""
        self._watch.wait()

    def close(self) -> None:
        """Records what is left and says what was never committed. May be repeated."""
        if self._closed:
            return
        self._closed = True
        self._watch.close()
        self.hooks.close()
        self.manager.close()
        for step, error in self._watch.failures:
            _log.error("reminder: step %d: %s", step, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
