"""Chosen checkpoints, copied to a second place for good: the best to object storage, while the rest stays here.

Unlike a mirror it does not follow the store: what is forgotten here stays there. What copies is the mirror's own.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any, Unpack

from ckpt_core.errors import UsageError
from ckpt_core.hooks import BaseHook, HookContext, HookEvent, HookOptions, HookPriority
from ckpt_core.maintenance.mirroring import adopt, copy_document, copy_pack
from ckpt_core.model import Checkpoint
from ckpt_core.repository import Repository, layout
from ckpt_core.stores import open_store
from ckpt_core.watch.watcher import Manager

__all__ = ["UploadCheckpoints"]

_log = logging.getLogger("ckpt_core.watch")


class UploadCheckpoints(BaseHook):
    """Copies each new best checkpoint to `place`, a path or URL that is empty or was used for this store before.

    With `events="after_save"` (and a `condition`) it copies others. What is there is a store as any other, which
    `ckpt` and a CheckpointManager read; only packs that it lacks travel, every chunk checked on the way, and the
    manifest last. It runs where the save ran, before old checkpoints are deleted: training goes on, the next save
    waits. A place that is out of reach is a failure of the hook, and nothing more. Raises UsageError.
    """

    events = (HookEvent.NEW_BEST,)
    priority = HookPriority.LOW

    def __init__(self, place: str, **options: Unpack[HookOptions]) -> None:
        super().__init__(**options)
        open_store(place).close()  # a place that cannot mean anything shows at once
        self.place = place
        self._manager: Callable[[], Manager | None] | None = None
        self._there: Repository | None = None

    def attach(self, owner: Any) -> None:
        self.detach()
        self._manager = weakref.ref(owner)

    def detach(self) -> None:
        if self._there is not None:
            self._there.store.close()
            self._there = None

    def execute(self, context: HookContext) -> None:
        manager = self._manager() if self._manager is not None else None
        if manager is None or context.checkpoint is None:
            raise UsageError(
                f"{self.name} copies what was just saved: give it to a manager, for NEW_BEST or AFTER_SAVE",
                kind="hook",
            )
        repository = manager.workspace.repository
        if self._there is None:
            self._there = adopt(repository, open_store(self.place), create=True)
        sent = send(repository, self._there, context.checkpoint)
        _log.info("uploaded %s to %s: %d packs", context.checkpoint.id, self._there.store.url, sent)


def send(source: Repository, target: Repository, checkpoint: Checkpoint) -> int:
    """Copies a checkpoint with its signatures and the packs it needs. Returns how many packs travelled.

    Raises CorruptionError, ObjectNotFoundError, StoreError; what is there then is no checkpoint yet.
    """
    sent = 0
    for pack in source.read(checkpoint.key).manifest.packs:
        if not target.store.exists(layout.pack_key(pack.name)):
            copy_pack(source, target, pack.name)
            sent += 1
    signatures = layout.signature_key(checkpoint.key)
    if source.store.exists(signatures):
        copy_document(source, target, signatures)
    copy_document(source, target, checkpoint.key)
    return sent
