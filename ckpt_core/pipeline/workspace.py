"""Everything that belongs to one store, opened together: what the manager and the command line hold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_core.errors import StoreError
from ckpt_core.maintenance.prune import Pruned, PrunePlan, execute_prune, plan_prune
from ckpt_core.maintenance.reindex import ReindexReport, reindex
from ckpt_core.maintenance.verify import Progress, VerifyReport, verify
from ckpt_core.model import Checkpoint
from ckpt_core.pipeline.index import Index
from ckpt_core.repository import MetricSegments, References, Repository
from ckpt_core.stores import LocalStore, Store, open_store

__all__ = ["Workspace"]


@dataclass(slots=True)
class Workspace:
    """A store with its repository, references, metric segments and catalog."""

    repository: Repository
    references: References
    segments: MetricSegments
    index: Index

    @classmethod
    def open(cls, root: str | os.PathLike[str] | Store, *, catalog: str | None = None, create: bool = False) -> Workspace:
        """Opens the store at a path or URL; `create` makes it where there is none.

        `catalog` is a SQLAlchemy URL; left out, the catalog is SQLite inside a local store. Raises
        NotFoundError (kind `store`), StoreError, FormatError, CorruptionError.
        """
        store = open_store(root)
        repository = Repository.open(store, create=create)
        references = References(store)
        url = catalog or _default_catalog(store)
        return cls(repository, references, MetricSegments(store), Index(repository, references, url))

    def tag(self, checkpoint: Checkpoint, tag: str) -> None:
        """Points a tag of the checkpoint's experiment to it. Durable when this returns."""
        self.references.set_tag(checkpoint.experiment, tag, checkpoint.id)
        self.index.synchronise(checkpoint.experiment)

    def untag(self, experiment: str, tag: str) -> None:
        """Removes a tag."""
        self.references.remove_tag(experiment, tag)
        self.index.synchronise(experiment)

    def pin(self, checkpoint: Checkpoint) -> None:
        """Keeps a checkpoint from every retention policy."""
        self.references.pin(checkpoint.experiment, checkpoint.id)
        self.index.synchronise(checkpoint.experiment)

    def unpin(self, checkpoint: Checkpoint) -> None:
        """Leaves a checkpoint to the retention policies again."""
        self.references.unpin(checkpoint.experiment, checkpoint.id)
        self.index.synchronise(checkpoint.experiment)

    def forget(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Moves their manifests to the trash; `prune` reclaims the bytes."""
        for checkpoint in checkpoints:
            self.repository.forget(checkpoint.key)
        self.index.tell(lambda catalog: catalog.forget_checkpoints([c.id for c in checkpoints]))
        for checkpoint in checkpoints:
            self.audit("forget", checkpoint.id, "done", experiment=checkpoint.experiment, step=checkpoint.step)

    def plan_prune(self, *, only: Sequence[str] | None = None) -> PrunePlan:
        """What a prune would do; nothing is changed."""
        self.index.synchronise()
        return plan_prune(self.repository, packs_of=self.index.packs_of(), only=only)

    def prune(self, plan: PrunePlan) -> Pruned:
        """Does what the plan says."""
        pruned = execute_prune(self.repository, plan)
        self.audit("prune", self.repository.store.url, "done", freed=pruned.freed, packs=pruned.packs)
        return pruned

    def verify(
        self, checkpoints: Sequence[Checkpoint] | None = None, *, read_data: bool = True, progress: Progress | None = None
    ) -> VerifyReport:
        """Checks these checkpoints, or every byte of the store. Damage is reported and recorded, not raised."""
        keys = None if checkpoints is None else [c.key for c in checkpoints]
        report = verify(self.repository, keys=keys, read_data=read_data, progress=progress)
        outcome = "ok" if report.ok else "damaged"
        detail = {"problems": [problem.detail for problem in report.problems[:5]]}
        ids = [None] if checkpoints is None else [c.id for c in checkpoints]
        for checkpoint in ids:
            hurt = outcome if checkpoint is None or checkpoint in report.damaged else "ok"
            self.index.tell(
                lambda catalog, c=checkpoint, o=hurt: catalog.record_check(
                    c, "full" if read_data else "headers", o, detail if o != "ok" else {}, report.bytes_read
                )
            )
        return report

    def reindex(self) -> ReindexReport:
        """Builds the catalog anew from the store. Raises CatalogError where it cannot be written."""
        report = reindex(self.repository, self.references, self.segments, self.index.catalog())
        self.audit("reindex", self.repository.store.url, "done", checkpoints=report.checkpoints)
        return report

    def audit(self, event: str, subject: str, outcome: str, **detail: object) -> None:
        """Adds to the audit trail of the catalog, if it is there."""
        self.index.tell(lambda catalog: catalog.audit(event, subject, outcome, detail))

    def close(self) -> None:
        """Closes the catalog and the store."""
        self.index.close()
        self.repository.store.close()


def _default_catalog(store: Store) -> str:
    if isinstance(store, LocalStore):
        return f"sqlite:///{store.root / 'catalog.db'}"
    if store.url.startswith("memory:"):
        return "sqlite://"
    raise StoreError(f"name a catalog for {store.url}, as catalog='sqlite:////path/to/catalog.db'", kind="catalog")
