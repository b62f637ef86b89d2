"""Forgotten checkpoints of a store: which are still there, and bringing one back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress

from ckpt_core.errors import CorruptionError, FormatError, NotFoundError
from ckpt_core.maintenance.undelete import bring_back
from ckpt_core.model import Checkpoint
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.repository import layout

__all__ = ["forgotten", "undelete"]

_log = logging.getLogger("ckpt_core.mirror")


def forgotten(workspace: Workspace, experiment: str | None = None) -> list[tuple[Checkpoint, float]]:
    """The forgotten checkpoints (of one experiment) that are still there, the newest last, and for how many
    seconds each is sure to stay: the next prune may take one that has none left."""
    repository = workspace.repository
    granted = repository.trash.granted()
    found = []
    for each in repository.manifest_keys(experiment, trash=True):
        with suppress(CorruptionError, FormatError, NotFoundError):
            checkpoint = repository.read(each.key).checkpoint()
            if not repository.store.exists(layout.live_key(each.key)):
                found.append((checkpoint, granted.get(each.key, 0.0)))
    return sorted(found, key=lambda item: (item[0].experiment, *item[0].order))


def undelete(workspace: Workspace, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Brings forgotten checkpoints back, with the tags and pins that they had. Returns them as they are now.

    Raises NotFoundError (kind `forgotten`) for one whose bytes were reclaimed, StoreError (of kind `locked`
    while somebody prunes); those before are then back.
    """
    return [_back(workspace, checkpoint) for checkpoint in checkpoints]


def _back(workspace: Workspace, checkpoint: Checkpoint) -> Checkpoint:
    facts = {"experiment": checkpoint.experiment, "step": checkpoint.step}
    with workspace.audited("undelete", checkpoint.id, **facts):
        committed = bring_back(workspace.repository, checkpoint.key)
    plain = committed.checkpoint()
    found = workspace.index.marks(plain.experiment).on(plain)
    if workspace.mirror is not None:
        try:
            workspace.mirror.follow(committed)
        except CorruptionError as error:
            _log.error("%s is back here and not on the mirror: %s", checkpoint.id, error)
    workspace.marked += 1
    workspace.index.tell(lambda catalog: catalog.put_checkpoint(found, committed.packs))
    return found
