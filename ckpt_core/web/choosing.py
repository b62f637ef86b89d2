"""Which checkpoint a request means, as whoever reads it may have it: by its id, or by a reference."""

from __future__ import annotations

from typing import Literal

from ckpt_core.errors import NotFoundError
from ckpt_core.format.documents import Manifest
from ckpt_core.model import Checkpoint
from ckpt_core.pipeline.trust import Readable, trusted_manifest
from ckpt_core.pipeline.workspace import Workspace

__all__ = ["by_id", "readable", "referred"]


def by_id(workspace: Workspace, identity: str) -> Checkpoint:
    """The checkpoint of this id. Raises NotFoundError."""
    found = referred(workspace, identity)
    if found.id != identity:  # a tag of that name
        raise NotFoundError(f"there is no checkpoint {identity}", kind="checkpoint")
    return found


def referred(
    workspace: Workspace, reference: str, metric: str | None = None, mode: Literal["min", "max"] = "min"
) -> Checkpoint:
    """The checkpoint that a reference means. Raises NotFoundError, UsageError, SignatureError."""
    return next(Readable(workspace).candidates(reference, experiment=None, metric=metric, mode=mode))


def readable(workspace: Workspace, identity: str) -> tuple[Checkpoint, Manifest]:
    """A checkpoint and its manifest, to be read. Raises also SignatureError where nobody trusted signed it."""
    checkpoint = by_id(workspace, identity)
    return checkpoint, trusted_manifest(workspace.repository, checkpoint)
