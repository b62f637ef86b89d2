"""Tags and pins of a store as they are now, reading again only what has changed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ckpt_core import clock
from ckpt_core.errors import CkptError, ObjectNotFoundError
from ckpt_core.format.documents import Reference
from ckpt_core.format.names import encode_name
from ckpt_core.maintenance.listings import SETTLED
from ckpt_core.model import Checkpoint
from ckpt_core.repository import References, Repository, layout
from ckpt_core.stores import ObjectInfo

__all__ = ["MarkReader", "Marks"]

_log = logging.getLogger("ckpt_core.maintenance")


@dataclass(slots=True)
class Marks:
    """Tags and pins, by the key of each in the store."""

    references: Mapping[str, Reference]
    damaged: tuple[str, ...] = ()
    """Keys of those that cannot be read: what they keep is not known."""
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    """Experiment -> tag -> id of the checkpoint."""
    pins: dict[str, set[str]] = field(default_factory=dict)
    """Experiment -> ids of the pinned checkpoints."""
    _of: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for reference in self.references.values():
            if reference.kind == "tags":
                self.tags.setdefault(reference.experiment, {})[reference.name] = reference.checkpoint
                self._of.setdefault(reference.checkpoint, []).append(reference.name)
            else:
                self.pins.setdefault(reference.experiment, set()).add(reference.checkpoint)

    def on(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with its tags and pin."""
        tags = tuple(sorted(self._of.get(checkpoint.id, ())))
        pinned = checkpoint.id in self.pins.get(checkpoint.experiment, ())
        if (tags, pinned) == (checkpoint.tags, checkpoint.pinned):
            return checkpoint
        return replace(checkpoint, tags=tags, pinned=pinned)


@dataclass(slots=True)
class _Known:
    info: ObjectInfo
    since: float
    reference: Reference
    settled: bool


class MarkReader:
    """Reads the marks of one store, time and again. For one thread at a time."""

    def __init__(self, repository: Repository) -> None:
        self._store = repository.store
        self._references = References(repository.store)
        self._known: dict[str, _Known] = {}

    def read(self, experiment: str | None = None) -> Marks:
        """The tags and pins of an experiment, or of all; damaged ones are logged and told apart."""
        prefix = layout.REFERENCES if experiment is None else f"{layout.REFERENCES}/{encode_name(experiment)}"
        found, damaged = {}, []
        for info in self._store.list(prefix):
            try:
                found[info.key] = self._one(info)
            except ObjectNotFoundError:  # removed since the listing
                continue
            except CkptError as error:
                _log.warning("tag or pin left out: %s", error)
                damaged.append(info.key)
        return Marks(found, tuple(damaged))

    def _one(self, info: ObjectInfo) -> Reference:
        now = clock.monotonic()
        known = self._known.get(info.key)
        same = known is not None and known.info == info
        if known is not None and same and known.settled:
            return known.reference
        reference = self._references.read(info.key)
        since = known.since if known is not None and same else now
        self._known[info.key] = _Known(info, since, reference, settled=now - since > SETTLED)
        return reference
