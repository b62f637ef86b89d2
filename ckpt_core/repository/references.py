"""Tags and pins: small sealed objects that point to a checkpoint, as git's refs do."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from ckpt_core import clock
from ckpt_core.errors import CkptError
from ckpt_core.format.documents import Reference
from ckpt_core.format.names import check_name, encode_name
from ckpt_core.format.sealed import seal, unseal
from ckpt_core.repository import layout
from ckpt_core.stores import Store

__all__ = ["References"]

_log = logging.getLogger("ckpt_core.repository")


class References:
    """The tags and pins of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def set_tag(self, experiment: str, tag: str, checkpoint: str) -> None:
        """Points a tag of the experiment to a checkpoint, away from any other."""
        check_name(tag, "a tag")
        self._put("tags", experiment, tag, checkpoint)

    def remove_tag(self, experiment: str, tag: str) -> None:
        """Removes a tag; one that is not there is no error."""
        self._store.delete(self._key("tags", experiment, tag))

    def pin(self, experiment: str, checkpoint: str) -> None:
        """Keeps a checkpoint from every retention policy."""
        self._put("pins", experiment, checkpoint, checkpoint)

    def unpin(self, experiment: str, checkpoint: str) -> None:
        """Leaves a checkpoint to the retention policies again."""
        self._store.delete(self._key("pins", experiment, checkpoint))

    def all(self, experiment: str | None = None) -> Iterator[tuple[str, Reference]]:
        """(key, reference) of each tag and pin that can be read; damaged ones are logged and left out."""
        prefix = layout.REFERENCES if experiment is None else f"{layout.REFERENCES}/{encode_name(experiment)}"
        for info in self._store.list(prefix):
            try:
                yield info.key, self.read(info.key)
            except CkptError as error:
                _log.warning("reference left out: %s", error)

    def read(self, key: str) -> Reference:
        """One reference. Raises CorruptionError, ObjectNotFoundError."""
        return unseal(self._store.get(key, limit=1 << 16), Reference, key)

    def keys(self) -> Iterator[str]:
        """The keys of all tags and pins."""
        for info in self._store.list(layout.REFERENCES):
            yield info.key

    def of_experiment(self, experiment: str) -> tuple[dict[str, str], set[str]]:
        """The tags of an experiment (tag -> checkpoint id) and the ids of its pinned checkpoints."""
        tags: dict[str, str] = {}
        pins: set[str] = set()
        for _, reference in self.all(experiment):
            if reference.kind == "tags":
                tags[reference.name] = reference.checkpoint
            else:
                pins.add(reference.checkpoint)
        return tags, pins

    def _put(self, kind: str, experiment: str, name: str, checkpoint: str) -> None:
        reference = Reference(
            kind=kind,
            name=name,
            experiment=experiment,
            checkpoint=checkpoint,
            created_at=clock.to_text(clock.now()),
        )
        self._store.put(self._key(kind, experiment, name), seal(reference))

    def _key(self, kind: str, experiment: str, name: str) -> str:
        return f"{layout.REFERENCES}/{encode_name(experiment)}/{kind}/{encode_name(name)}.json"
