"""Which checkpoint a request means, as whoever reads it may have it: by its id, or by a reference."""

from __future__ import annotations

from typing import Literal

from ckpt_core.errors import NotFoundError
from ckpt_core.format.documents import Manifest
from ckpt_core.model import Checkpoint
from ckpt_core.pipeline.trust import Readable, standing_manifest
from ckpt_core.pipeline.workspace import Workspace

__all__ = ["Choosing"]


class Choosing:
    """The checkpoints of a store, for as long as its server runs: a signature is not checked anew for each request that
    only chooses, nor is a manifest read for each range of a download."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._readable = Readable(workspace)

    def by_id(self, identity: str) -> Checkpoint:
        """The checkpoint of this id. Raises NotFoundError, SignatureError."""
        found = self.referred(identity)
        if found.id != identity:  # a tag of that name
            raise NotFoundError(f"there is no checkpoint {identity}", kind="checkpoint")
        return found

    def referred(
        self, reference: str, metric: str | None = None, mode: Literal["min", "max"] = "min"
    ) -> Checkpoint:
        """The checkpoint that a reference means. Raises NotFoundError, UsageError, SignatureError."""
        return next(self._readable.candidates(reference, experiment=None, metric=metric, mode=mode))

    def readable(self, identity: str) -> tuple[Checkpoint, Manifest]:
        """A checkpoint and its manifest, to be read. Raises also SignatureError where nobody trusted signed it."""
        checkpoint = self.by_id(identity)
        return checkpoint, standing_manifest(self._workspace, checkpoint)
