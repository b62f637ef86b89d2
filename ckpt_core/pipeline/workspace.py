"""Everything that belongs to one store, opened together: what the manager and the command line hold."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt_core.errors import CkptError, CorruptionError, NotFoundError, ObjectNotFoundError, StoreError
from ckpt_core.format.names import check_tag
from ckpt_core.maintenance.census import Census
from ckpt_core.maintenance.deletion import Pruned, execute_prune
from ckpt_core.maintenance.integrity import IntegrityTracker
from ckpt_core.maintenance.mirroring import adopt, alone
from ckpt_core.maintenance.parity import Protected, check_percent, protect_all
from ckpt_core.maintenance.prune import PrunePlan, plan_prune, plan_reclaim
from ckpt_core.model import Checkpoint
from ckpt_core.perf.figures import Figures
from ckpt_core.pipeline.facts import ExperimentIndex
from ckpt_core.pipeline.index import Index
from ckpt_core.pipeline.manifests import Manifests
from ckpt_core.pipeline.mirror import Mirror, mirror_of, remembered
from ckpt_core.repository import ExperimentRecords, MetricSegments, References, Repository, layout
from ckpt_core.stores import LocalStore, Store, open_store

if TYPE_CHECKING:
    from ckpt_core.maintenance.reindex import ReindexReport
    from ckpt_core.maintenance.repair import RepairReport
    from ckpt_core.maintenance.scrubbing import ScrubReport
    from ckpt_core.maintenance.sources import Source
    from ckpt_core.maintenance.verify import Progress, VerifyReport

__all__ = ["Workspace"]

_FOR_EACH = 1000
_log = logging.getLogger("ckpt_core.pipeline")


class Workspace:
    """A store with its repository, references, metric segments, experiments and catalog. Thread-safe."""

    def __init__(
        self, repository: Repository, url: str, file: Path | None, mirror: Mirror | None = None
    ) -> None:
        self.repository = repository
        self.mirror = mirror
        noted = mirror.note if mirror is not None else None
        self.references = References(repository.store, noted)
        self.segments = MetricSegments(repository.store, noted)
        self.experiments = ExperimentRecords(repository.store, noted)
        self.figures = Figures()
        self.index = Index(repository, self.segments, url, file, self.figures.cache)
        self.facts = ExperimentIndex(self.index, repository, self.experiments, self.segments)
        self.manifests = Manifests(repository, self.figures.cache)
        repository.forwarded = self.manifests.forward
        self.marked = 0
        """How often a tag or pin was set or taken off here: who remembers them compares."""
        self._pruning = threading.Lock()
        self._census: Census | None = None

    @classmethod
    def open(
        cls,
        root: str | os.PathLike[str] | Store,
        *,
        catalog: str | None = None,
        create: bool = False,
        chunk_bytes: int | None = None,
        digest: str | None = None,
        mirror: str | os.PathLike[str] | Store | None = None,
    ) -> Workspace:
        """Opens the store at a path or URL; `create` makes it where there is none.

        `catalog` is a SQLAlchemy URL; left out, the catalog is SQLite inside a local store. `chunk_bytes` and
        `digest` are what a new store is made with. `mirror`: the place of a second store that follows this one;
        left out, the one that the store remembers. Raises NotFoundError (kind `store`), StoreError,
        FormatError, CorruptionError; UsageError where the store that is there was made with others, or the
        mirror is that of another.
        """
        store = open_store(root)
        url, file = (catalog, None) if catalog is not None else _default_catalog(store)
        second = None if mirror is None else mirror_of(store, mirror, create=create)
        repository = Repository.open(store, create=create, chunk_bytes=chunk_bytes, digest=digest)
        place = remembered(store) if second is None else second
        link = None if place is None else Mirror(repository, place)
        if link is not None:
            repository.spare = link.spare
            if second is not None:
                link.remember()
        return cls(repository, url, file, link)

    def tag(self, checkpoint: Checkpoint, tag: str) -> None:
        """Points a tag of the checkpoint's experiment to it. Durable when this returns. Raises UsageError."""
        with self.audited("tag", checkpoint.id, experiment=checkpoint.experiment, tag=check_tag(tag)):
            self.references.set_tag(checkpoint.experiment, tag, checkpoint.id)
        self._tell_marked(checkpoint.experiment)

    def untag(self, experiment: str, tag: str) -> None:
        """Removes a tag; one that is not there is no error."""
        with self.audited("untag", experiment, tag=tag):
            self.references.remove_tag(experiment, tag)
            self._removed([layout.reference_key(experiment, "tags", tag)])
        self._tell_marked(experiment)

    def pin(self, checkpoint: Checkpoint) -> None:
        """Keeps a checkpoint from every retention policy."""
        with self.audited("pin", checkpoint.id, experiment=checkpoint.experiment):
            self.references.pin(checkpoint.experiment, checkpoint.id)
        self._tell_marked(checkpoint.experiment)

    def unpin(self, checkpoint: Checkpoint) -> None:
        """Leaves a checkpoint to the retention policies again."""
        with self.audited("unpin", checkpoint.id, experiment=checkpoint.experiment):
            self.references.unpin(checkpoint.experiment, checkpoint.id)
            self._removed([layout.reference_key(checkpoint.experiment, "pins", checkpoint.id)])
        self._tell_marked(checkpoint.experiment)

    def forget(self, checkpoints: Sequence[Checkpoint], *, grace: float = 0.0) -> list[Checkpoint]:
        """Moves their manifests to the trash; `prune` reclaims the bytes, but not for `grace` seconds. Returns
        those that were there.

        Raises StoreError; those before are then forgotten, and known to be.
        """
        gone: list[Checkpoint] = []
        try:
            for checkpoint in checkpoints:
                try:
                    self.repository.forget(checkpoint.key, grace=grace)
                except ObjectNotFoundError:  # forgotten by somebody else meanwhile
                    continue
                gone.append(checkpoint)
        finally:
            if gone:
                self._removed([checkpoint.key for checkpoint in gone])
                self.index.tell(lambda catalog: catalog.forget_checkpoints([c.id for c in gone]))
            for checkpoint in gone:
                facts = {"experiment": checkpoint.experiment, "step": checkpoint.step}
                self.audit("forget", checkpoint.id, "done", **facts)
        return gone

    def plan_prune(self, *, now: bool = False) -> PrunePlan:
        """What a prune would do; nothing is changed. Forgotten checkpoints that can be brought back stay, unless
        all are to go `now`. Reads every manifest. Raises CorruptionError."""
        return plan_prune(self.repository, now=now)

    def prune(self, plan: PrunePlan) -> Pruned:
        """Does what the plan says. Raises StoreError, CorruptionError."""
        with self._pruning, self.audited("prune", self.repository.store.url) as facts:
            self._census = None
            self._settle(plan)
            if not plan.empty:
                self.index.back_up("prune")
            pruned = execute_prune(self.repository, plan)
            facts |= {"freed": pruned.freed, "packs": pruned.packs, "manifests": list(plan.manifests)}
        return pruned

    def is_worth_reclaiming(self, forgotten: int) -> bool:
        """Whether so many forgotten checkpoints are worth `reclaim`, which goes through the names of all that
        stand: one for each thousand of them, so that its cost after each save does not grow with their number.
        """
        census = self._census
        return census is None or forgotten * _FOR_EACH >= len(census.keys)

    def reclaim(
        self, forgotten: Sequence[str], standing: Collection[str], references: Sequence[str]
    ) -> Pruned | None:
        """Prunes what only these forgotten manifests needed, without reading those of the whole store again.

        `forgotten` are keys in the trash, `standing` those of all manifests that are left, `references`
        those of the tags and pins of the forgotten. None where somebody else is pruning: then they wait in
        the trash for the next call. Raises StoreError, CorruptionError.
        """
        repository = self.repository
        with self._pruning:
            census, self._census = self._census, None  # kept only if all goes well
            if census is not None:
                try:
                    census.update(standing)
                except (NotFoundError, CorruptionError):  # somebody else has pruned
                    census = None
            if census is None:
                census = Census.take(repository, repository.trash.granted())
            plan = plan_reclaim(repository, census, forgotten, references)
            self._settle(plan)
            try:
                pruned = execute_prune(repository, plan, census=census, sweep=False)
            except StoreError as error:
                if error.kind != "locked":
                    raise
                _log.info("what was forgotten is reclaimed later: %s", error)
                return None
            self._census = census
        self.audit("prune", repository.store.url, "done", freed=pruned.freed, packs=pruned.packs)
        return pruned

    def verify(
        self,
        checkpoints: Sequence[Checkpoint] | None = None,
        *,
        read_data: bool = True,
        share: float = 1.0,
        progress: Progress | None = None,
    ) -> VerifyReport:
        """Checks these checkpoints, or every byte of the store. Damage is reported and recorded.

        `share`: of all packs, those that make this share of the bytes are read, and of the rest the headers. It is
        the turn of those not read for longest.
        """
        # Only now: it is seldom used, and the start of every process would pay for it.
        from ckpt_core.maintenance.scrubbing import portion
        from ckpt_core.maintenance.verify import verify

        keys = None if checkpoints is None else [c.key for c in checkpoints]
        tracker = self.tracker() if read_data and keys is None else None
        packs = portion(self.repository, tracker, share) if tracker is not None and share < 1 else None
        report = verify(self.repository, keys=keys, read_data=read_data, packs=packs, progress=progress)
        if tracker is not None:
            bad = {problem.key for problem in report.problems}
            for name in report.read:
                hurt = not bad.isdisjoint((layout.pack_key(name), layout.parity_key(name)))
                tracker.record(name, "damaged" if hurt else "ok", report.sizes[name])
        for checkpoint in [None] if checkpoints is None else [c.id for c in checkpoints]:
            self._record(report, checkpoint)
        return report

    def tracker(self) -> IntegrityTracker:
        """What was checked when, as the catalog remembers it."""
        return IntegrityTracker(self.index.catalog)

    def scrub(
        self,
        *,
        rate: int | None = None,
        limit: int | None = None,
        seconds: float | None = None,
        progress: Progress | None = None,
    ) -> ScrubReport:
        """Reads and checks what was not for longest, as far as `limit` and `seconds` allow. See `scrub`."""
        from ckpt_core.maintenance.scrubbing import scrub

        return scrub(
            self.repository, self.tracker(), rate=rate, limit=limit, seconds=seconds, progress=progress
        )

    def repair(
        self,
        *,
        dry_run: bool = False,
        mirror: str | os.PathLike[str] | Store | None = None,
        progress: Progress | None = None,
    ) -> RepairReport:
        """Heals what is damaged or lost; what cannot be healed is put in quarantine. `mirror`: in place of the one
        that the store remembers. Raises StoreError; UsageError where the mirror is that of another store."""
        from ckpt_core.maintenance.repair import repair

        there = self._source(mirror)
        restore = alone(self.repository, there) if there is not None else []
        with self._pruning:
            self._census = None
            if not dry_run:
                self.index.back_up("repair")
            report = repair(self.repository, there, restore=restore, dry_run=dry_run, progress=progress)
        if not dry_run:
            self.index.recover()
            facts = {
                "healed": len(report.mended),
                "lost": list(report.lost),
                "returned": list(report.returned),
            }
            self.audit("repair", self.repository.store.url, "done" if report.ok else "partly", **facts)
        return report

    def set_mirror(self, place: str | os.PathLike[str] | Store) -> Mirror:
        """Begins a mirror at a place, which the store remembers. Raises UsageError, StoreError."""
        link = Mirror(self.repository, mirror_of(self.repository.store, place, create=False))
        link.open()
        link.remember()
        if self.mirror is not None:
            self.mirror.close()
        self.mirror, self.repository.spare = link, link.spare
        self.audit("mirror-set", link.url, "done")
        return link

    def unset_mirror(self) -> str | None:
        """Ends the mirroring; returns where the mirror was."""
        link, self.mirror, self.repository.spare = self.mirror, None, None
        if link is None:
            return None
        link.close()
        link.forget()
        self.audit("mirror-off", link.url, "done")
        return link.url

    def discard_quarantine(self) -> int:
        """Gives up what is in quarantine; returns how many objects that were."""
        from ckpt_core.maintenance.repair import discard_quarantine

        count = discard_quarantine(self.repository)
        self.audit("discard-quarantine", self.repository.store.url, "done", objects=count)
        return count

    @staticmethod
    def mend_store(
        root: str | os.PathLike[str] | Store, mirror: str | os.PathLike[str] | Store | None = None
    ) -> Source | None:
        """Heals `store.json` itself, without which nothing opens; None where nothing is wrong with it.

        Raises CorruptionError where it cannot be healed.
        """
        from ckpt_core.maintenance.documents import heal_store_document

        store = open_store(root)
        place = remembered(store) if mirror is None else mirror
        return heal_store_document(store, None if place is None else open_store(place))

    def _source(self, mirror: str | os.PathLike[str] | Store | None) -> Repository | None:
        if mirror is not None:
            return adopt(self.repository, open_store(mirror), create=False)
        if self.mirror is None:
            return None
        try:
            return self.mirror.open()
        except CkptError as error:
            _log.error("the mirror cannot help: %s", error)
            return None

    def protect(self, percent: int) -> Protected:
        """Writes parity for every pack that has none. Raises UsageError, MissingExtraError, StoreError."""
        check_percent(percent)
        done = protect_all(self.repository, percent)
        self.audit("parity", self.repository.store.url, "done", percent=percent, packs=done.packs)
        return done

    def reindex(self) -> ReindexReport:
        """Builds the catalog anew from the store. Raises CatalogError where it cannot be written."""
        self.index.back_up("reindex")
        with self.audited("reindex", self.repository.store.url) as facts:
            report = self.index.reindex()
            facts["checkpoints"] = report.checkpoints
        return report

    @contextmanager
    def audited(self, event: str, subject: str, **detail: object) -> Iterator[dict[str, object]]:
        """Adds to the audit trail how the block ended. What it learns it puts into the dict."""
        facts = dict(detail)
        try:
            yield facts
        except BaseException as error:
            reason = str(error) or type(error).__name__
            self.audit(event, subject, "failed", reason=reason, **facts)
            raise
        self.audit(event, subject, "done", **facts)

    def audit(self, event: str, subject: str, outcome: str, **detail: object) -> None:
        """Adds to the audit trail of the catalog, if it is there."""
        self.index.tell(lambda catalog: catalog.audit(event, subject, outcome, detail))

    def _removed(self, keys: Sequence[str]) -> None:
        if self.mirror is not None:
            self.mirror.removed(keys)

    def _settle(self, plan: PrunePlan) -> None:
        if self.mirror is not None:
            self.mirror.settle(plan.manifests)

    def _tell_marked(self, experiment: str) -> None:
        self.marked += 1
        self.index.synchronise(experiment)

    def _record(self, report: VerifyReport, checkpoint: str | None) -> None:
        hurt = not report.ok if checkpoint is None else checkpoint in report.damaged
        kind = "full" if report.read_data else "headers"
        outcome = "damaged" if hurt else "ok"
        detail = {"problems": [problem.detail for problem in report.problems[:5]]} if hurt else {}
        self.index.tell(
            lambda catalog: catalog.record_check(checkpoint, kind, outcome, detail, report.bytes_read)
        )

    def close(self) -> None:
        """Closes the catalog, the mirror and the store."""
        self.index.close()
        if self.mirror is not None:
            self.mirror.close()
        self.repository.store.close()


def _default_catalog(store: Store) -> tuple[str, Path | None]:
    """URL of the catalog, and the file if it is one."""
    if isinstance(store, LocalStore):
        file = store.root / "catalog.db"
        if "?" not in str(file):  # where the path of such a URL ends
            return f"sqlite:///{file}", file
    elif store.url.startswith("memory:"):
        return "sqlite://", None
    raise StoreError(
        f"name a catalog for {store.url}, as catalog='sqlite:////path/to/catalog.db'", kind="catalog"
    )
