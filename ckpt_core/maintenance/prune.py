"""Finding the bytes that no checkpoint names: a plan that can be printed, then executed once (`deletion`)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ckpt_core.errors import CorruptionError, NotFoundError, ObjectNotFoundError
from ckpt_core.maintenance.census import Census, Needs
from ckpt_core.maintenance.rewriting import is_rewritten, serves, successor
from ckpt_core.repository import Claims, References, Repository, layout

__all__ = ["ORPHAN_SECONDS", "PrunePlan", "plan_prune", "plan_reclaim"]

ORPHAN_SECONDS = 3600.0
"""A pack that nothing names and that no forgotten checkpoint wrote may belong to a save that is running
elsewhere: it is left alone until it is this old by the store's own clock."""

_REWRITE_BELOW = 0.5
_REWRITE_AT_LEAST = 1 << 20
_log = logging.getLogger("ckpt_core.maintenance")


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What a prune will do."""

    manifests: tuple[str, ...] = ()
    """Keys of forgotten manifests, gone for good."""
    rewrites: tuple[tuple[str, int, int], ...] = ()
    """(pack, live bytes, dead bytes): the live ones move to a new pack."""
    packs: tuple[tuple[str, int], ...] = ()
    """(pack, bytes) that nothing names."""
    forwards: tuple[str, ...] = ()
    """Rewritten packs that nothing names any more, whose forwarding can go."""
    references: tuple[str, ...] = ()
    """Keys of tags and pins whose checkpoint is gone for good."""
    young: tuple[str, ...] = ()
    """Packs that nothing names and that are too young to be deleted."""
    granted: tuple[tuple[str, float], ...] = ()
    """(key, seconds) of forgotten manifests that can be brought back for so long: their bytes stay."""
    spent: tuple[str, ...] = ()
    """Keys of forgotten manifests, there or not, whose notes of grace have no more to say."""
    now: bool = False
    """Whether no grace is given."""
    claimed: tuple[str, ...] = ()
    """Packs that nothing names and that a save may be about to name: it holds a lease."""
    restores: tuple[str, ...] = ()
    """Packs that an interrupted prune took out of circulation and that something names after all."""
    withdrawn: tuple[tuple[str, int], ...] = ()
    """(pack, bytes) that an interrupted prune took out of circulation and did not delete."""
    sidecars: tuple[str, ...] = ()
    """Packs that are gone, whose parity can go."""
    signatures: tuple[str, ...] = ()
    """Keys of signatures without a manifest anywhere, which an interrupted save or prune left behind."""
    seen: frozenset[str] = field(default=frozenset(), repr=False)
    """Keys of the manifests that the plan knows of."""
    seen_forwards: frozenset[str] = field(default=frozenset(), repr=False)
    live: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    """Offsets of the chunks to be moved, for each pack to be rewritten."""
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """Packs rewritten earlier whose forwarding leads to a pack to be rewritten."""

    @property
    def frees(self) -> int:
        """Bytes that will be free afterwards."""
        dead = sum(dead for _, _, dead in self.rewrites)
        return dead + sum(size for _, size in (*self.packs, *self.withdrawn))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (
            self.manifests or self.rewrites or self.packs or self.forwards or self.references or self.restores
            or self.withdrawn or self.spent or self.sidecars or self.signatures
        )  # fmt: skip


def plan_prune(
    repository: Repository,
    *,
    orphan_seconds: float = ORPHAN_SECONDS,
    rewrite: bool = True,
    keep: Collection[str] = (),
    now: bool = False,
) -> PrunePlan:
    """Reads every manifest and lists what no live one needs. Changes nothing.

    Without `rewrite`, half-dead packs stay as they are. `keep`: keys in the trash of what is not yet to go.
    Nor do forgotten checkpoints go that can be brought back, unless all are to go `now`.

    Raises CorruptionError where a live manifest cannot be read: what it needs is then not known.
    """
    # References first: one that names a checkpoint made after them is then never taken for dangling. Claims
    # before manifests: a save gives its claim up when its manifest stands.
    references = list(References(repository.store).all())
    claims = repository.leases.claims()
    # The trash before its notes: whoever gives grace writes the note first.
    trash = list(repository.manifest_keys(trash=True))
    granted = repository.trash.granted()
    waiting = {*keep, *(() if now else granted)}
    forgotten = [found for found in trash if found.key not in waiting]
    census = Census.take(repository, waiting)
    alive = {_id_of(key) for key in (*census.keys, *waiting)}
    alive |= {found.id for found in repository.manifest_keys(quarantine=True)}
    named = _named(repository, [found.key for found in forgotten])
    let_go = _let_go(census, named)
    owners = {found.id for found in forgotten if found.id not in alive}
    needs = census.needs(census.sizes)
    rewrites = _half_dead(repository, census, needs.chunks, claims) if rewrite else []
    kept = _kept(census, rewrites)
    dead, young, claimed = [], [], []
    limit: float | None = None
    for name, chunks in needs.chunks.items():
        if chunks or name in kept:
            continue
        if name in claims:
            claimed.append(name)
            continue
        certain = name in let_go or (layout.pack_owner(name) in owners and not is_rewritten(name))
        if not certain:
            limit = repository.store.now() - orphan_seconds if limit is None else limit
        if certain or (limit is not None and _modified(repository, name) <= limit):
            dead.append((name, census.sizes[name]))
        else:
            young.append(name)
    return PrunePlan(
        manifests=tuple(key for key, packs in named.items() if packs.isdisjoint(claimed)),
        packs=tuple(dead),
        forwards=_stale_forwards(census, census.forwards, needs.forwards),
        references=tuple(key for key, reference in references if reference.checkpoint not in alive),
        young=tuple(young),
        claimed=tuple(claimed),
        granted=tuple((key, left) for key, left in granted.items() if key in census.keys),
        spent=(*repository.trash.spent(), *(granted if now else ())),
        now=now,
        restores=tuple(sorted(name for name in census.withdrawn if name in needs.missing or name in claims)),
        withdrawn=_left_withdrawn(census, needs, claims),
        sidecars=tuple(sorted(_without_packs(census))),
        signatures=tuple(_without_manifests(repository, orphan_seconds)),
        seen=frozenset(census.keys),
        seen_forwards=frozenset(census.forwards),
        rewrites=tuple((name, sum(chunks.values()), dead) for name, chunks, dead in rewrites),
        live={name: tuple(sorted(chunks)) for name, chunks, _ in rewrites},
        sources={name: census.sources(name) for name, _, _ in rewrites},
    )


def plan_reclaim(
    repository: Repository, census: Census, manifests: Sequence[str], references: Sequence[str]
) -> PrunePlan:
    """The part of a prune that has to do with the forgotten `manifests` (keys in the trash) alone.

    For retention, which runs after every save: nothing is listed. `references` are the keys of their tags
    and pins. `census` knows that they are forgotten.
    """
    claims = repository.leases.claims()
    named = _named(repository, manifests)
    let_go = _let_go(census, named)
    # What came and went since the census was last brought up to date has left packs that it never saw.
    for name in let_go - census.sizes.keys() - census.forwards.keys():
        with suppress(ObjectNotFoundError):
            census.note_standing(name)
    needs = census.needs(let_go)
    forwards = let_go & census.forwards.keys()
    rewrites = _half_dead(repository, census, needs.chunks, claims)
    kept = _kept(census, rewrites)
    dead = [name for name, chunks in sorted(needs.chunks.items()) if not chunks and name not in kept]
    claimed = tuple(name for name in dead if name in claims)
    return PrunePlan(
        manifests=tuple(key for key, packs in named.items() if packs.isdisjoint(claimed)),
        packs=tuple((name, census.sizes[name]) for name in dead if name not in claims),
        claimed=claimed,
        forwards=_stale_forwards(census, forwards, needs.forwards),
        references=tuple(references),
        seen=frozenset(census.keys),
        seen_forwards=frozenset(census.forwards),
        rewrites=tuple((name, sum(chunks.values()), dead) for name, chunks, dead in rewrites),
        live={name: tuple(sorted(chunks)) for name, chunks, _ in rewrites},
        sources={name: census.sources(name) for name, _, _ in rewrites},
    )


def _named(repository: Repository, manifests: Iterable[str]) -> dict[str, set[str]]:
    """Key of each forgotten manifest -> the packs that it names."""
    found: dict[str, set[str]] = {}
    for key in manifests:
        found[key] = set()
        # Where one cannot be read, its packs are told by their names, or by their age.
        with suppress(NotFoundError, CorruptionError):
            found[key] = {pack.name for pack in repository.read(key).manifest.packs}
    return found


def _let_go(census: Census, named: Mapping[str, Collection[str]]) -> set[str]:
    """The packs that forgotten manifests name, and those to which they were rewritten."""
    found = {name for names in named.values() for name in names}
    return found | {target for name in found for target in census.targets(name)}


Rewrite = tuple[str, Mapping[int, int], int]
"""(pack, offset -> length of the needed chunks, dead bytes)."""


def _half_dead(
    repository: Repository, census: Census, needed: Mapping[str, Mapping[int, int]], claims: Claims
) -> list[Rewrite]:
    """The packs of which live manifests need less than half, where a rewrite pays."""
    found = []
    for name, chunks in sorted(needed.items()):
        live = sum(chunks.values())
        if not chunks or name in claims or census.sizes[name] - live < _REWRITE_AT_LEAST:
            continue
        try:
            size = census.data_bytes(name)
            if size - live < _REWRITE_AT_LEAST or live >= _REWRITE_BELOW * size:
                continue
            if successor(name) in census.sizes and not serves(repository, name, chunks):
                continue  # another prune is at it, or left something behind that will be an orphan
        except (CorruptionError, ObjectNotFoundError) as error:
            _log.warning("pack %s is left as it is: %s", name, error)
            continue
        found.append((name, chunks, size - live))
    return found


def _kept(census: Census, rewrites: Iterable[Rewrite]) -> set[str]:
    """Packs that a forwarding leads to or will lead to, though nothing needs them yet: their predecessors
    still stand."""
    kept = {successor(name) for name, _, _ in rewrites}
    for name in census.forwards:
        if census.is_named(name):
            kept |= census.targets(name)
    return kept


def _stale_forwards(census: Census, names: Iterable[str], needed: Collection[str]) -> tuple[str, ...]:
    return tuple(
        sorted(n for n in names if not census.is_named(n) and n not in needed and n not in census.sizes)
    )


def _left_withdrawn(census: Census, needs: Needs, claims: Claims) -> tuple[tuple[str, int], ...]:
    """What is out of circulation for good. A pack seen in both places is in another prune's hands."""
    return tuple(
        (name, size)
        for name, size in sorted(census.withdrawn.items())
        if name not in needs.missing and name not in census.sizes and name not in claims
    )


def _without_packs(census: Census) -> Iterator[str]:
    """Sidecars of packs that are gone for good. One of a pack that is lost may still heal it."""
    for name in census.sidecars:
        if name not in census.sizes and name not in census.withdrawn and not census.is_named(name):
            yield name


def _without_manifests(repository: Repository, orphan_seconds: float) -> Iterator[str]:
    """Signatures of no checkpoint, in the trash or outside. A young one may be of a save that is running."""
    signed = list(repository.signatures.infos())
    if not signed:
        return
    there = {layout.signature_key(found.key) for found in repository.manifest_keys()}
    there |= {layout.signature_key(found.key) for found in repository.manifest_keys(trash=True)}
    there |= {layout.signature_key(found.key) for found in repository.manifest_keys(quarantine=True)}
    left = [info for info in signed if info.key not in there]
    limit = repository.store.now() - orphan_seconds if left else 0.0
    yield from (info.key for info in left if info.modified <= limit)


def _modified(repository: Repository, name: str) -> float:
    try:
        return repository.store.info(layout.pack_key(name)).modified
    except ObjectNotFoundError:  # deleted since the listing
        return float("inf")


def _id_of(key: str) -> str:
    parsed = layout.parse_manifest_key(key)
    return parsed.id if parsed is not None else ""
