"""Questions about checkpoints, answered by the catalog; by the store itself while the catalog is away.

The catalog is an index: no save and no load fails because of it. What it missed is added when it is back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from ckpt_core.errors import CatalogError, CkptError, FormatError, StoreError
from ckpt_core.maintenance.reindex import synchronise
from ckpt_core.model import Checkpoint
from ckpt_core.repository import References, Repository

if TYPE_CHECKING:
    from ckpt_core.catalog import Catalog

__all__ = ["Index"]

T = TypeVar("T")
_log = logging.getLogger("ckpt_core.pipeline")


class Index:
    """The catalog of one store, opened on first use. Thread-safe."""

    def __init__(self, repository: Repository, references: References, url: str) -> None:
        self.url = url
        self._repository = repository
        self._references = references
        self._lock = threading.RLock()
        self._catalog: Catalog | None = None
        self._away = False
        self._read: dict[str, Checkpoint] = {}

    def catalog(self) -> Catalog:
        """The catalog itself. Raises CatalogError, FormatError where it cannot be used."""
        with self._lock:
            if self._catalog is None:
                from ckpt_core.catalog import Catalog

                self._catalog = Catalog.open(self.url)
            return self._catalog

    def tell(self, what: Callable[[Catalog], object]) -> None:
        """Writes to the catalog if it is there; else it will be brought in line when it is back."""
        self._with_catalog(what)

    def checkpoints(self, experiment: str | None = None) -> list[Checkpoint]:
        """All committed checkpoints (of one experiment), from the oldest to the newest."""
        self.synchronise(experiment)
        found = self._with_catalog(lambda catalog: catalog.checkpoints(experiment))
        return found if found is not None else self._from_store(experiment)

    def newest(self, experiment: str) -> Checkpoint | None:
        """The newest checkpoint of the newest attempt that saved."""
        self.synchronise(experiment)
        found = self._with_catalog(lambda catalog: [catalog.newest(experiment)])
        if found is not None:
            return found[0]
        return max(self._from_store(experiment), key=lambda c: c.order, default=None)

    def lineage(self, experiment: str, lineage: str) -> list[Checkpoint]:
        """The checkpoints of one training effort, from the oldest to the newest."""
        self.synchronise(experiment)
        found = self._with_catalog(lambda catalog: catalog.checkpoints(experiment, lineage=lineage))
        return found if found is not None else [
            c for c in self._from_store(experiment) if c.attempt.lineage == lineage
        ]  # fmt: skip

    def with_prefix(self, prefix: str, experiment: str | None, limit: int) -> list[Checkpoint]:
        """Up to `limit` checkpoints whose id begins with `prefix`."""
        self.synchronise(experiment)
        found = self._with_catalog(lambda catalog: catalog.find_prefix(prefix, experiment=experiment, limit=limit))
        if found is not None:
            return found
        return [c for c in self._from_store(experiment) if c.id.startswith(prefix)][:limit]

    def packs_of(self) -> Callable[[str], Sequence[str]] | None:
        """How to find the packs that a manifest names without reading it; None while the catalog is away."""
        packs = self._with_catalog(lambda catalog: catalog.packs_by_key())
        if packs is None:
            return None

        def of(key: str) -> Sequence[str]:
            known = packs.get(key)
            return known if known else [pack.name for pack in self._repository.read(key).manifest.packs]

        return of

    def synchronise(self, experiment: str | None = None) -> None:
        """Brings the catalog in line with the store: what others committed or forgot, what it missed."""
        self._with_catalog(lambda catalog: synchronise(self._repository, self._references, catalog, experiment))

    def close(self) -> None:
        """Closes the catalog."""
        with self._lock:
            if self._catalog is not None:
                self._catalog.close()
                self._catalog = None

    def _with_catalog(self, work: Callable[[Catalog], T]) -> T | None:
        """What `work` returns; None while the catalog cannot be used, which is said once."""
        try:
            result = work(self.catalog())
        except (CatalogError, FormatError) as error:
            if not self._away:
                _log.warning("going on without the catalog, which is only an index: %s", error)
            self._away = True
            return None
        if self._away:
            _log.warning("the catalog is back")
            self._away = False
        return result

    def _from_store(self, experiment: str | None) -> list[Checkpoint]:
        found = []
        for key in self._repository.manifest_keys(experiment):
            try:
                if key.id not in self._read:
                    self._read[key.id] = self._repository.read(key.key).checkpoint()
            except StoreError:
                raise
            except CkptError as error:
                _log.warning("checkpoint left out: %s", error)
                continue
            found.append(self._read[key.id])
        return sorted(self._with_references(found), key=lambda c: (c.experiment, *c.order))

    def _with_references(self, checkpoints: list[Checkpoint]) -> list[Checkpoint]:
        from dataclasses import replace

        known = {name: self._references.of_experiment(name) for name in {c.experiment for c in checkpoints}}
        return [
            replace(
                c,
                tags=tuple(sorted(tag for tag, to in known[c.experiment][0].items() if to == c.id)),
                pinned=c.id in known[c.experiment][1],
            )
            for c in checkpoints
        ]
