"""Questions about checkpoints, answered by the catalog; by the store itself while the catalog is away.

The catalog is an index: no save and no load fails because of it. What it missed is added when it is back.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ckpt_core import clock
from ckpt_core.errors import CatalogError, CkptError, MissingExtraError, NotFoundError, StoreError, UsageError
from ckpt_core.format.names import encode_name
from ckpt_core.maintenance.marks import MarkReader, Marks
from ckpt_core.maintenance.reindex import ReindexReport, reindex, synchronise
from ckpt_core.model import Checkpoint
from ckpt_core.repository import MetricSegments, Repository
from ckpt_core.repository.layout import MANIFESTS, ManifestKey, parse_manifest_key

if TYPE_CHECKING:
    from ckpt_core.catalog import Catalog

__all__ = ["Index"]

T = TypeVar("T")
_log = logging.getLogger("ckpt_core.pipeline")

_TIMEOUT = 5.0
_SLOW = 1.0
_QUIET = 30.0  # a catalog that takes long to refuse is not asked for so many seconds: saves must not wait


class Index:
    """The catalog of one store, opened on first use. Thread-safe.

    `file` is where an SQLite catalog inside the store lies: if it is deleted or replaced while it is open,
    the one that is there then is used.
    """

    def __init__(self, repository: Repository, segments: MetricSegments, url: str, file: Path | None) -> None:
        self.url = url
        self._repository = repository
        self._segments = segments
        self._file = file
        self._inode: tuple[int, int] | None = None
        self._lock = threading.RLock()
        self._catalog: Catalog | None = None
        self._away = False
        self._closed = False
        self._quiet_until = 0.0
        self._current = False  # whether all that was missed while there was no catalog has been added
        self._marks = MarkReader(repository)
        self._rows: dict[str, Checkpoint] = {}  # by key; what a manifest says never changes
        self._damaged: dict[str, CkptError] = {}

    def catalog(self) -> Catalog:
        """The catalog itself. Raises CatalogError, FormatError, UsageError where it cannot be used."""
        with self._lock:
            if self._closed:
                raise CatalogError(f"the catalog {self.url} was closed with its manager", kind="closed")
            if self._catalog is not None and self._inode != self._file_inode():
                _log.warning("the catalog %s was deleted or replaced while it was open", self._file)
                self._catalog.close()
                self._catalog = None
            if self._catalog is None:
                from ckpt_core.catalog import Catalog

                self._current = False
                self._catalog = Catalog.open(self.url, timeout=_TIMEOUT)
                self._inode = self._file_inode()
            return self._catalog

    def connect(self) -> None:
        """Opens the catalog now. That it is away is only said; raises UsageError, MissingExtraError for a URL
        that can never be one."""
        self._ask(lambda catalog: None, strict=True)

    def tell(self, what: Callable[[Catalog], object]) -> bool:
        """Writes to the catalog, or leaves it to be brought in line later; whether it was. Never raises."""
        try:
            return self._ask(lambda catalog: (what(catalog),)) is not None
        except Exception:
            _log.exception("the catalog was not told")
            return False

    # -- questions ---------------------------------------------------------------------------------

    def checkpoints(self, experiment: str | None = None) -> list[Checkpoint]:
        """All committed checkpoints (of one experiment), from the oldest to the newest."""
        self.synchronise(experiment)
        found = self._ask(lambda catalog: catalog.checkpoints(experiment))
        return found if found is not None else self.standing(experiment)

    def newest(self, experiment: str) -> Checkpoint | None:
        """The newest checkpoint of the newest attempt that saved."""
        self.synchronise(experiment)
        found = self._ask(lambda catalog: [catalog.newest(experiment)])
        if found is not None:
            return found[0]
        return max(self.standing(experiment), key=lambda c: c.order, default=None)

    def best(self, experiment: str, metric: str, mode: str, lineage: str) -> Checkpoint | None:
        """The best by a metric in a lineage, as far as the catalog knows: the store is not asked anew."""
        if not self._current:
            self.synchronise(experiment)
        best = self._ask(
            lambda catalog: catalog.best(experiment, metric, "max" if mode == "max" else "min", lineage)
        )
        if best is not None:
            return best[0] if best else None
        sign = -1.0 if mode == "max" else 1.0
        carrying = [
            c
            for c in self.standing(experiment)
            if c.attempt.lineage == lineage and not math.isnan(c.metrics.get(metric, math.nan))
        ]
        return min(carrying, key=lambda c: (sign * c.metrics[metric], c.order), default=None)

    def standing(
        self, experiment: str | None = None, keys: Iterable[str] | None = None, marks: Marks | None = None
    ) -> list[Checkpoint]:
        """As `checkpoints`, by the store alone; `keys` of manifests and `marks` may be known already."""
        if keys is None:
            keys = [found.key for found in self._repository.manifest_keys(experiment)]
        folder = MANIFESTS if experiment is None else f"{MANIFESTS}/{encode_name(experiment)}"
        rows = [self._row(key) for key in keys if key.startswith(f"{folder}/")]
        found = [checkpoint for checkpoint in rows if checkpoint is not None]
        marks = self.marks(experiment) if marks is None else marks
        return sorted(map(marks.on, found), key=lambda c: (c.experiment, *c.order))

    def marks(self, experiment: str | None = None) -> Marks:
        """The tags and pins (of one experiment) as the store has them."""
        with self._lock:
            return self._marks.read(experiment)

    def packs_of(self) -> Callable[[str], Sequence[str]] | None:
        """How to find the packs that a manifest names without reading it; None while the catalog is away."""
        packs = self._ask(lambda catalog: catalog.packs_by_key())
        if packs is None:
            return None

        def of(key: str) -> Sequence[str]:
            return packs.get(key) or [pack.name for pack in self._repository.read(key).manifest.packs]

        return of

    def damaged(self, experiment: str | None = None) -> list[tuple[ManifestKey, CkptError]]:
        """Manifests (of one experiment) that were found damaged: no question is answered with them."""
        folder = None if experiment is None else encode_name(experiment)
        found = []
        for key, error in self._damaged.items():
            parsed = parse_manifest_key(key)
            if parsed is not None and folder in (None, parsed.folder) and self._repository.store.exists(key):
                found.append((parsed, error))
        return sorted(found, key=lambda item: item[0].id)

    # -- keeping in line ---------------------------------------------------------------------------

    def synchronise(self, experiment: str | None = None) -> None:
        """Brings the catalog in line with the store: what others committed or forgot, what it missed."""
        self._ask(lambda catalog: self._synchronise(catalog, experiment))

    def reindex(self) -> ReindexReport:
        """Builds the catalog anew. Raises CatalogError where it cannot be written."""
        report = reindex(self._repository, self._segments, self.catalog())
        self._current = True
        return report

    def close(self) -> None:
        """Closes the catalog. What is asked afterwards, the store answers."""
        with self._lock:
            self._closed = True
            if self._catalog is not None:
                self._catalog.close()
                self._catalog = None

    def _synchronise(self, catalog: Catalog, experiment: str | None) -> None:
        if not self._current and not catalog.ids(include_forgotten=True):
            if self._is_used():
                _log.warning("the catalog is empty and the store is not: it is built anew")
                self.reindex()
            self._current = True
        # All of the store at first: an experiment may have changed while there was no catalog to tell.
        with self._lock:
            synchronise(
                self._repository,
                catalog,
                experiment if self._current else None,
                marks=self._marks,
                damaged=self._damaged,
            )
        self._current = True

    def _is_used(self) -> bool:
        """Whether the store holds anything that a catalog should tell of."""
        repository = self._repository
        for there in (
            repository.manifest_keys(),
            repository.manifest_keys(trash=True),
            self._segments.keys(),
        ):
            if next(iter(there), None) is not None:
                return True
        return False

    def _ask(self, work: Callable[[Catalog], T], *, strict: bool = False) -> T | None:
        """What `work` returns; None while the catalog cannot be used, which is said once."""
        begun = clock.monotonic()
        if begun < self._quiet_until:
            return None
        try:
            result = work(self.catalog())
        except StoreError:
            raise
        except NotFoundError as error:  # another process was faster
            _log.debug("%s", error)
            return None
        except CkptError as error:
            if strict and isinstance(error, (UsageError, MissingExtraError)):
                raise
            if clock.monotonic() - begun > _SLOW:
                self._quiet_until = clock.monotonic() + _QUIET
            if not self._away and not self._closed:
                _log.warning("going on without the catalog, which is only an index: %s", error)
            self._away, self._current = True, False
            return None
        if self._away:
            _log.warning("the catalog is back")
            self._away = False
        return result

    def _row(self, key: str) -> Checkpoint | None:
        if key not in self._rows and key not in self._damaged:
            try:
                self._rows[key] = self._repository.read(key).checkpoint()
            except NotFoundError:  # forgotten since the listing
                return None
            except StoreError:
                raise
            except CkptError as error:
                _log.error("checkpoint left out: %s", error)
                self._damaged[key] = error
        return self._rows.get(key)

    def _file_inode(self) -> tuple[int, int] | None:
        if self._file is None:
            return None
        try:
            status = os.stat(self._file)
        except OSError:
            return None
        return status.st_dev, status.st_ino
