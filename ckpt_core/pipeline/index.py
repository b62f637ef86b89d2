"""Questions about checkpoints, answered by the catalog; by the store itself while the catalog is away.

The catalog is an index: no save and no load fails because of it. What it missed is added when it is back.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, cast

from ckpt_core import clock
from ckpt_core.errors import CatalogError, CkptError, MissingExtraError, NotFoundError, StoreError, UsageError
from ckpt_core.format.names import encode_name
from ckpt_core.maintenance.listings import is_settled, look
from ckpt_core.maintenance.marks import MarkReader, Marks
from ckpt_core.maintenance.reindex import ReindexReport, reindex, synchronise, synchronise_series
from ckpt_core.model import Checkpoint
from ckpt_core.perf.cache import CacheManager
from ckpt_core.pipeline.answers import Answers, Listed
from ckpt_core.pipeline.remembered import Remembered
from ckpt_core.repository import ExperimentRecords, MetricSegments, Repository, refuse_if_gone
from ckpt_core.repository.layout import MANIFESTS, ManifestKey, parse_manifest_key

if TYPE_CHECKING:
    from ckpt_core.catalog import Catalog

__all__ = ["Index", "unless_read_only"]

T = TypeVar("T")
_log = logging.getLogger("ckpt_core.pipeline")

_TIMEOUT = 5.0
_SLOW = 1.0
_WORTH_NOTING = 1000  # manifests: to list fewer is cheaper than to write down that it is not necessary
_QUIET = 30.0  # a catalog that takes long to refuse is not asked for so many seconds: saves must not wait


class Index:
    """The catalog of one store, opened on first use. Thread-safe.

    `file` is where an SQLite catalog inside the store lies: if it is deleted or replaced while it is open,
    the one that is there then is used.
    """

    def __init__(
        self,
        repository: Repository,
        segments: MetricSegments,
        url: str,
        file: Path | None,
        cache: CacheManager | None = None,
    ) -> None:
        self.url = url
        self._repository, self._id = repository, repository.document.store_id
        self._segments = segments
        self._records = ExperimentRecords(repository.store)
        self._file = file
        self._inode: tuple[int, int] | None = None
        self._lock = threading.RLock()
        self._catalog: Catalog | None = None
        self._cache = cache
        self._told = 0
        self._away = False
        self._closed = False
        self._quiet_until = 0.0
        self._in_line: dict[str, str | None] = {}
        """Experiments with which this catalog was brought in line, and what their folders looked like then, if
        they will not change without looking otherwise."""
        self._marks = MarkReader(repository)
        self._rows: dict[str, Checkpoint] = {}  # by key; what a manifest says never changes
        self._damaged: dict[str, CkptError] = {}
        self._behind: set[str | None] = set()
        """Experiments (None: all) with which the catalog could not be brought in line: the store answers."""

    def catalog(self) -> Catalog:
        """The catalog itself. Raises CatalogError, FormatError, UsageError where it cannot be used."""
        with self._lock:
            if self._closed:
                raise CatalogError("the catalog was closed with its manager", kind="closed")
            if self._catalog is not None and self._inode != self._file_inode():
                _log.warning("the catalog %s was deleted or replaced while it was open", self._file)
                self._catalog.close()
                self._catalog = None
            if self._catalog is None:
                from ckpt_core.catalog import Catalog

                self._in_line.clear()
                self._refuse_strangers()
                self._catalog = Catalog.open(self.url, store=self._id, timeout=_TIMEOUT)
                self._inode = self._file_inode()
            return self._catalog

    def connect(self) -> None:
        """Opens the catalog now. That it is away is only said; raises UsageError, MissingExtraError for a URL
        that can never be one."""
        self.consult(lambda catalog: None, strict=True)

    def tell(self, what: Callable[[Catalog], object]) -> bool:
        """Writes to the catalog, or leaves it to be brought in line later; whether it was. Never raises."""
        try:
            self._told += 1
            return self.consult(lambda catalog: (what(catalog),)) is not None
        except Exception:
            _log.exception("the catalog was not told")
            return False

    # -- questions ---------------------------------------------------------------------------------

    def ask(self, question: Callable[[Answers], T], experiment: str | None = None) -> T:
        """What the catalog answers to a question (about one experiment), or, while it is away, the store.

        The store is not asked anew what has changed: that is `synchronise`.
        """
        behind = bool(self._behind) if experiment is None else experiment in self._behind
        found = (
            None
            if behind
            else self.consult(lambda catalog: (question(self._remembered(catalog, experiment)),))
        )
        return found[0] if found is not None else question(Listed(self.standing(experiment)))

    def _remembered(self, catalog: Catalog, experiment: str | None) -> Answers:
        """The catalog; where it is known to be in line with an experiment's folders, with what it said before."""
        word = None if experiment is None else self._in_line.get(experiment)
        if word is None or experiment is None or self._cache is None:
            return catalog
        return cast("Answers", Remembered(catalog, self._cache, experiment, (word, self._told)))

    def checkpoints(self, experiment: str | None = None) -> list[Checkpoint]:
        """All committed checkpoints (of one experiment), from the oldest to the newest."""
        self.synchronise(experiment)
        return self.ask(lambda answers: answers.checkpoints(experiment), experiment)

    def newest(self, experiment: str) -> Checkpoint | None:
        """The newest checkpoint of the newest attempt that saved."""
        self.synchronise(experiment)
        return self.ask(lambda answers: answers.newest(experiment), experiment)

    def best(
        self, experiment: str, metric: str, mode: Literal["min", "max"], lineage: str
    ) -> Checkpoint | None:
        """The best by a metric in a lineage, as far as the catalog knows: the store is not asked anew."""
        if experiment not in self._in_line:
            self.synchronise(experiment)
        best = self.ask(lambda answers: answers.best(experiment, metric, mode, lineage), experiment)
        return best[0] if best else None

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
        packs = self.consult(lambda catalog: catalog.packs_by_key())
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

    def refuse_if_gone(self) -> None:
        """Raises StoreError (kind `gone`) where the store itself is not there any more."""
        refuse_if_gone(self._repository.store)

    # -- keeping in line ---------------------------------------------------------------------------

    def synchronise(self, experiment: str | None = None) -> None:
        """Brings the catalog in line with the store: what others committed or forgot, what it missed."""

        def in_line(catalog: Catalog) -> bool:
            self._synchronise(catalog, experiment)
            return True

        if not self.consult(in_line):
            self._behind.add(experiment)
        elif experiment is None:
            self._behind.clear()
        else:
            self._behind.discard(experiment)

    def recover(self) -> None:
        """Looks again at what was found damaged: it may have been healed."""
        with self._lock:
            self._damaged.clear()
        self.synchronise()

    def reindex(self) -> ReindexReport:
        """Builds the catalog anew; an SQLite file that is past use is moved aside first. Raises CatalogError where
        it cannot be written."""
        try:
            return reindex(self._repository, self._segments, self.catalog())
        except CatalogError as error:
            if error.kind not in ("corrupt", "database"):
                raise
            self._move_aside(error)
        return reindex(self._repository, self._segments, self.catalog())

    def back_up(self, reason: str) -> Path | None:
        """A copy of the catalog, before something that changes much. That it failed is only said: what is to come
        is not worse for it, and may be what makes room."""
        try:
            return self.catalog().back_up(reason)
        except CkptError as error:
            _log.warning("going on without a backup of the catalog: %s", error)
            return None

    def release(self) -> None:
        """Closes the catalog until it is next asked: its file is about to be replaced."""
        with self._lock:
            if self._catalog is not None:
                self._catalog.close()
                self._catalog = None

    def _move_aside(self, error: CatalogError) -> None:
        from ckpt_core.catalog import backups

        try:
            path = backups.file_of(self.url)
            if path is None:
                raise error
            self.release()
            backups.move_aside(path)
        except (UsageError, OSError):  # it is no file, or one that stays where it is
            raise error from None

    def close(self) -> None:
        """Closes the catalog. What is asked afterwards, the store answers."""
        with self._lock:
            self._closed = True
            if self._catalog is not None:
                self._catalog.close()
                self._catalog = None

    def _synchronise(self, catalog: Catalog, experiment: str | None) -> None:
        if not self._in_line and catalog.empty() and self._is_used():
            _log.warning("the catalog is empty and the store is not: it is built anew")
            self.reindex()
        with self._lock:
            if experiment is not None:
                self._bring_in_line(catalog, experiment)
                return
            names = catalog.experiment_names()
            for name in (*names, *self._unknown({encode_name(name) for name in names})):
                self._bring_in_line(catalog, name)

    def _bring_in_line(self, catalog: Catalog, experiment: str) -> None:
        folder, store = encode_name(experiment), self._repository.store
        if experiment not in self._in_line:
            unless_read_only(
                lambda: synchronise_series(self._repository, self._segments, catalog, experiment)
            )
        looks = look(store, folder)  # before it is listed: what changes meanwhile shows the next time
        word = None if looks is None else looks.word
        if word is not None and (
            word == self._in_line.get(experiment) or word == catalog.listing_word(folder)
        ):
            self._in_line[experiment] = word
            return
        count = synchronise(self._repository, catalog, experiment, self._marks, self._damaged)
        lasts = count is not None and looks is not None and is_settled(store, looks)
        self._in_line[experiment] = word if lasts else None
        if lasts and word is not None and count is not None and count >= _WORTH_NOTING:
            try:
                catalog.note_listing(folder, word)
            except CatalogError as error:  # by one that can only be read, each process has to list by itself
                _log.debug("%s", error)

    def _unknown(self, known: Collection[str]) -> Iterator[str]:
        """Experiments of which the catalog has no checkpoints."""
        for folder in self._repository.store.folders(MANIFESTS):
            if folder not in known:
                for name in sorted(self._repository.store.names(f"{MANIFESTS}/{folder}")):
                    parsed = parse_manifest_key(f"{MANIFESTS}/{folder}/{name}")
                    row = self._row(parsed.key) if parsed is not None else None
                    if row is not None:
                        yield row.experiment
                        break

    def _is_used(self) -> bool:
        """Whether the store holds anything that a catalog should tell of."""
        repository = self._repository
        for there in (
            repository.manifest_keys(),
            repository.manifest_keys(trash=True),
            self._segments.keys(),
            self._records.keys(),
        ):
            if next(iter(there), None) is not None:
                return True
        return False

    def consult(self, work: Callable[[Catalog], T], *, strict: bool = False) -> T | None:
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
            self._away = True
            self._in_line.clear()
            return None
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            if not self._away:
                _log.warning("going on without the catalog, which holds what nobody wrote there: %r", error)
            self._away = True
            self._in_line.clear()
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

    def _refuse_strangers(self) -> None:
        """A catalog inside of a store is a file of its own: SQLite would follow a link out of the store, and write."""
        for suffix in ("", "-wal", "-shm", "-journal"):
            path = f"{self._file}{suffix}"
            if self._file is not None and os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
                raise CatalogError(
                    f"{path} is no regular file: move it away, `ckpt reindex` makes a new catalog from the store",
                    kind="corrupt",
                    url=self.url,
                )

    def _file_inode(self) -> tuple[int, int] | None:
        if self._file is None:
            return None
        try:
            status = os.stat(self._file)
        except OSError:
            return None
        return status.st_dev, status.st_ino


def unless_read_only(work: Callable[[], object]) -> None:
    """Brings a catalog in line, unless it can only be read: then it answers with what it has."""
    try:
        work()
    except CatalogError as error:
        if error.kind != "read-only":
            raise
        _log.debug("%s", error)
