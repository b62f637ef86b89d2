"""Doing what a prune plan says, in an order such that a crash leaves garbage and never loss.

What a live manifest names is durable in its new place before the old place goes. And a pack is taken out of
circulation, where it can be put back, before it is deleted: a save that runs meanwhile may have named it at
the last moment.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

from ckpt_core.errors import CkptError, CorruptionError, NotFoundError, ObjectNotFoundError, StoreError
from ckpt_core.maintenance.census import Census, chunks_of, live_keys
from ckpt_core.maintenance.parity import carry_over
from ckpt_core.maintenance.prune import PrunePlan
from ckpt_core.maintenance.rewriting import is_rewritten, rewrite
from ckpt_core.repository import HeldLease, References, Repository, layout

__all__ = ["MAINTENANCE", "Pruned", "execute_prune"]

MAINTENANCE = "maintenance"
"""The lock of whoever deletes or rewrites packs."""
STALE_SECONDS = 24 * 3600.0
_log = logging.getLogger("ckpt_core.maintenance")


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune did."""

    manifests: int
    packs: int
    rewritten: int
    freed: int
    temporaries: int


def execute_prune(
    repository: Repository, plan: PrunePlan, *, census: Census | None = None, sweep: bool = True
) -> Pruned:
    """Does what the plan says. Interrupted at any instant it leaves garbage for the next prune, never loss.

    `census`, if given, learns what has changed. Raises StoreError (of kind `locked` where another prune is at
    work: then nothing was done); CorruptionError where a chunk to be moved is damaged (its pack is then left
    alone and the rest is still done first).
    """
    with repository.leases.take("prune", lock=MAINTENANCE, makes_room=True) as lease:
        repository.leases.end_dead()
        return _Execution(repository, plan, census, lease).run(sweep)


class _Execution:
    def __init__(
        self, repository: Repository, plan: PrunePlan, census: Census | None, lease: HeldLease
    ) -> None:
        self._lease = lease
        self._repository = repository
        self._store = repository.store
        self._plan = plan
        self._census = census
        self._failures: list[CkptError] = []
        self._out: dict[str, int] = dict(plan.withdrawn)  # taken out of circulation -> bytes that this frees
        self._moved: dict[str, set[int]] = {}
        self._claimed = False
        self._needed: set[str] = set()  # packs whose forwarding manifests need that came since the plan

    def run(self, sweep: bool) -> Pruned:
        plan = self._plan
        for name in plan.restores:
            self._put_back(name)
        for name, _, dead in plan.rewrites:
            if self._rewrite(name):
                self._take_out(name, dead)
        for name, size in plan.packs:
            self._take_out(name, size)
        if self._out or plan.forwards:
            try:
                self._look_again()
                self._refuse_if_late()
            except BaseException:
                # What was published meanwhile is not known, so nothing may go. The next prune will see.
                for name in list(self._out):
                    with suppress(StoreError):
                        self._put_back(name)
                raise
        for name in self._out:
            self._store.delete(layout.withdrawn_key(name))
            self._store.delete(layout.parity_key(name))
            self._lease.renew()
        for name in plan.sidecars:
            self._store.delete(layout.parity_key(name))
        # They are what tells that a pack which a save claims is to go when that save has ended.
        manifests = [] if self._claimed else self._without_grace(plan.manifests)
        for key in manifests:
            self._store.delete(key)
            self._repository.signatures.settle(key)
        for key in plan.signatures:
            self._repository.signatures.settle(layout.signed_key(key))
        for key in plan.spent:
            self._repository.trash.drop(key)
        for name in [name for name in plan.forwards if name not in self._needed]:
            self._store.delete(layout.forward_key(name))
            if self._census is not None:
                self._census.forwards.pop(name, None)
        self._delete_references()
        temporaries = self._store.sweep(STALE_SECONDS) if sweep else 0
        if self._failures:
            raise self._failures[0]
        rewritten = len(self._moved.keys() & self._out.keys())
        freed = sum(self._out.values()) + temporaries
        return Pruned(len(manifests), len(self._out) - rewritten, rewritten, freed, temporaries)

    def _without_grace(self, keys: Sequence[str]) -> list[str]:
        """Without those that were brought back since the plan was made, and forgotten once more."""
        granted = self._repository.trash.granted() if keys and not self._plan.now else ()
        return [key for key in keys if key not in granted]

    def _rewrite(self, name: str) -> bool:
        sources = self._plan.sources.get(name, ())
        try:
            target, moved = rewrite(
                self._repository, name, self._plan.live[name], sources, alive=self._lease.renew
            )
        except ObjectNotFoundError:  # another prune was faster
            if self._census is not None:
                self._census.note_gone(name)
                self._census.note_forward(name)
            return False
        except CorruptionError as error:
            _log.warning("pack %s is left as it is: %s", name, error)
            self._failures.append(error)
            return False
        if self._census is not None:
            self._census.note_standing(target)
            for each in (name, *sources):
                self._census.note_forward(each)
        self._moved[name] = moved
        carry_over(self._repository, name, target)
        # Last, so that a prune that took the new pack for an orphan meanwhile is noticed.
        return moved >= set(self._plan.live[name]) and self._store.exists(layout.pack_key(target))

    def _take_out(self, name: str, freed: int) -> None:
        self._lease.renew()
        try:
            self._store.move(layout.pack_key(name), layout.withdrawn_key(name))
        except ObjectNotFoundError:
            pass
        else:
            self._out[name] = freed
        if self._census is not None:
            self._census.note_gone(name)

    def _put_back(self, name: str) -> None:
        _log.info("pack %s is needed after all and stands in its place again", name)
        self._out.pop(name, None)
        try:
            self._store.move(layout.withdrawn_key(name), layout.pack_key(name))
        except ObjectNotFoundError:  # another prune was faster
            return
        if self._census is not None:
            self._census.note_standing(name)

    def _look_again(self) -> None:
        """Puts back what a save claims, or a manifest names, that came since the plan was made.

        A save puts its lease and then looks for the packs. Either it did so before they were taken out, and
        then the lease is seen here, or the manifest for which it was given up; or after, and then the save
        does without those packs.
        """
        claims = self._repository.leases.standing_claims()
        for name in [name for name in self._out if name in claims]:
            self._claimed = True
            self._put_back(name)
        granted = () if self._plan.now else self._repository.trash.granted()
        for key in chain(live_keys(self._repository, self._plan.seen), granted):
            if key not in self._plan.seen:
                try:
                    manifest = self._repository.read(key).manifest
                except NotFoundError:
                    continue
                except CorruptionError:
                    if key not in granted:
                        raise
                    continue  # it cannot be brought back anyway
                for name, offset, _ in chunks_of(manifest):
                    if name in self._out and offset not in self._moved.get(name, ()):
                        self._put_back(name)
                self._keep_forwards({pack.name for pack in manifest.packs})
        if any(is_rewritten(name) and name not in self._moved for name in self._out):
            self._look_for_forwards()

    def _keep_forwards(self, names: set[str]) -> None:
        """Keeps the forwardings that lead on from these packs, and puts back those that they lead to: another
        prune may have rewritten them before the plan saw who names them."""
        while names:
            documents = {name: self._repository.forward(name) for name in names - self._needed}
            led_on = {name: document for name, document in documents.items() if document is not None}
            self._needed |= led_on.keys()
            names = {row.pack for document in led_on.values() for row in document.rows}
            for target in [name for name in names if name in self._out and name not in self._moved]:
                self._put_back(target)

    def _look_for_forwards(self) -> None:
        """The same for packs that another prune has just filled: they are named by a forwarding alone."""
        for info in self._store.list(layout.PACKS):
            name = info.key.removeprefix(f"{layout.PACKS}/").removesuffix(layout.FORWARD_SUFFIX)
            if (
                not info.key.endswith(layout.FORWARD_SUFFIX)
                or name in self._plan.seen_forwards
                or name in self._moved
            ):
                continue
            document = self._repository.forward(name)
            for target in {row.pack for row in document.rows} if document else ():
                if target in self._out and target not in self._moved:
                    self._put_back(target)

    def _refuse_if_late(self) -> None:
        if not self._lease.stands():
            raise StoreError(
                "this prune was held up for so long that another may have begun: prune again", kind="locked"
            )

    def _delete_references(self) -> None:
        if not self._plan.references:
            return
        references = References(self._store)
        alive = {found.id for found in self._repository.manifest_keys()}
        alive |= {found.id for found in self._repository.manifest_keys(quarantine=True)}
        for key in self._plan.references:
            try:
                checkpoint = references.read(key).checkpoint
            except CkptError:  # gone, or damaged: not for prune to judge
                continue
            if checkpoint not in alive:  # a tag may have moved since the plan
                self._store.delete(key)
