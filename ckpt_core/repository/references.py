"""Tags and pins: small sealed objects that point to a checkpoint, as git's refs do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Literal
from urllib.parse import unquote

from ckpt_core import clock, ids
from ckpt_core.errors import CkptError, CorruptionError, ObjectNotFoundError, StoreError
from ckpt_core.format.documents import Reference
from ckpt_core.format.names import check_tag, encode_name, fault_in_stored
from ckpt_core.format.sealed import seal, unseal
from ckpt_core.repository import layout
from ckpt_core.stores import Store

__all__ = ["References"]

_LIMIT = 1 << 16
_log = logging.getLogger("ckpt_core.repository")


class References:
    """The tags and pins of a store. Every method may be called from any thread, and repeated.

    `written` is told the key of each that was set.
    """

    def __init__(self, store: Store, written: Callable[[str], object] | None = None) -> None:
        self._store = store
        self._written = written

    def set_tag(self, experiment: str, tag: str, checkpoint: str) -> None:
        """Points a tag of the experiment to a checkpoint, away from any other. Durable when this returns.

        Raises UsageError for what cannot be a tag; StoreError.
        """
        self._put("tags", experiment, check_tag(tag), checkpoint)

    def remove_tag(self, experiment: str, tag: str) -> None:
        """Removes a tag; one that is not there is no error."""
        self._store.delete(layout.reference_key(experiment, "tags", tag))

    def pin(self, experiment: str, checkpoint: str) -> None:
        """Keeps a checkpoint from every retention policy. Durable when this returns."""
        self._put("pins", experiment, checkpoint, checkpoint)

    def unpin(self, experiment: str, checkpoint: str) -> None:
        """Leaves a checkpoint to the retention policies again."""
        self._store.delete(layout.reference_key(experiment, "pins", checkpoint))

    def all(self, experiment: str | None = None) -> Iterator[tuple[str, Reference]]:
        """(key, reference) of each tag and pin, by key.

        A damaged tag is logged and left out. A damaged pin still holds: its key says all that it says.
        Raises StoreError where the store cannot be read.
        """
        prefix = layout.REFERENCES if experiment is None else f"{layout.REFERENCES}/{encode_name(experiment)}"
        for info in self._store.list(prefix):
            try:
                yield info.key, self.read(info.key)
            except ObjectNotFoundError:  # removed since the listing
                continue
            except StoreError:
                raise
            except CkptError as error:
                pin = _pin_by_key(info.key, experiment)
                if pin is None:
                    _log.warning("tag left out: %s", error)
                else:
                    _log.warning("pin kept by its name alone: %s", error)
                    yield info.key, pin

    def read(self, key: str) -> Reference:
        """One reference. Raises CorruptionError, FormatError, ObjectNotFoundError."""
        found = unseal(self._store.get(key, limit=_LIMIT), Reference, key)
        if key != layout.reference_key(found.experiment, found.kind, found.name):
            raise CorruptionError(
                f"{key} is that of another name: it was moved or copied", kind="document", key=key
            )
        for name in (found.experiment, found.name):
            if fault := fault_in_stored(name):
                raise CorruptionError(
                    f"{key} is damaged: its name {name!a} {fault}", kind="document", key=key
                )
        return found

    def keys(self) -> Iterator[str]:
        """The keys of all that stands where tags and pins do."""
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

    def _put(self, kind: Literal["tags", "pins"], experiment: str, name: str, checkpoint: str) -> None:
        reference = Reference(
            kind=kind,
            name=name,
            experiment=experiment,
            checkpoint=checkpoint,
            created_at=clock.to_text(clock.now()),
        )
        key = layout.reference_key(experiment, kind, name)
        self._store.put(key, seal(reference))
        if self._written is not None:
            self._written(key)


def _pin_by_key(key: str, experiment: str | None) -> Reference | None:
    parsed = layout.parse_reference_key(key)
    if parsed is None or parsed.kind != "pins" or not ids.is_ulid(parsed.name):
        return None
    return Reference(
        kind="pins",
        name=parsed.name,
        experiment=experiment or unquote(parsed.folder),
        checkpoint=parsed.name,
        created_at=clock.to_text(ids.time_of(parsed.name)),
    )
