"""Reclaiming the bytes that no checkpoint names: a plan that can be printed, then executed once.

The order of deletion is such that a crash leaves garbage and never loss: what a live manifest names is
written and durable in its new place before the old place goes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ckpt_core import ids
from ckpt_core.errors import CkptError, CorruptionError
from ckpt_core.format.documents import Forward, ForwardRow, Manifest
from ckpt_core.format.pack import PackWriter, Piece, StoredChunk, header_bound, read_header
from ckpt_core.format.sealed import seal
from ckpt_core.maintenance.verify import packs_in
from ckpt_core.model import Buffer, TensorSpec
from ckpt_core.repository import References, Repository, layout
from ckpt_core.repository.digests import digest_of
from ckpt_core.stores import ObjectWriter
from ckpt_core.tree import dtypes

__all__ = ["ORPHAN_SECONDS", "PrunePlan", "Pruned", "execute_prune", "plan_prune"]

ORPHAN_SECONDS = 3600.0
"""A pack that nothing names and that no forgotten checkpoint wrote may belong to a save that is running
elsewhere: it is left alone until it is this old by the store's own clock."""

_REWRITE_BELOW = 0.5
_REWRITE_AT_LEAST = 1 << 20
_log = logging.getLogger("ckpt_core.maintenance")

PacksOf = Callable[[str], Iterable[str]]
"""The names of the packs that the manifest under a key needs."""


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What a prune will do, in the order in which it does it."""

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
    used: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """Manifests (keys) that name each pack to be rewritten."""

    @property
    def frees(self) -> int:
        """Bytes that will be free afterwards."""
        return sum(size for _, size in self.packs) + sum(dead for _, _, dead in self.rewrites)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.manifests or self.rewrites or self.packs or self.forwards or self.references)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune did."""

    manifests: int
    packs: int
    rewritten: int
    freed: int
    temporaries: int


def plan_prune(
    repository: Repository,
    *,
    packs_of: PacksOf | None = None,
    only: Iterable[str] | None = None,
    orphan_seconds: float = ORPHAN_SECONDS,
) -> PrunePlan:
    """Reads what is live and lists what is dead. Changes nothing.

    `packs_of` answers from the catalog; without it every manifest is read. `only` restricts the plan to
    these packs and to forgotten manifests (what retention just forgot), which saves listing all packs.
    Raises CorruptionError where a live manifest cannot be read: what it names is then not known.
    """
    live = [found.key for found in repository.manifest_keys()]
    trash = list(repository.manifest_keys(trash=True))
    named: dict[str, list[str]] = {}
    for key in live:
        for name in _packs_of(repository, key) if packs_of is None else packs_of(key):
            named.setdefault(name, []).append(key)
    wanted = None if only is None else set(only)
    standing = {n: size for n, size in packs_in(repository) if wanted is None or n in wanted}
    forwarded, stale = _forwards(repository, named)
    limit = repository.store.now() - orphan_seconds
    forgotten = {found.id for found in trash}
    dead, young = [], []
    for name, size in standing.items():
        if name in named or name in forwarded:
            continue
        owner = name.rpartition("/")[2][:26]
        key = layout.pack_key(name)
        old_enough = owner in forgotten or repository.store.info(key).modified <= limit
        (dead if old_enough else young).append((name, size))
    rewrites = _half_dead(repository, {n: named.get(n, []) for n in standing if n in named}, standing)
    alive = {found.id for found in repository.manifest_keys()}
    references = References(repository.store)
    return PrunePlan(
        manifests=tuple(found.key for found in trash),
        rewrites=tuple(rewrites),
        packs=tuple(dead),
        forwards=tuple(stale),
        references=tuple(key for key, ref in references.all() if ref.checkpoint not in alive),
        young=tuple(name for name, _ in young),
        used={name: tuple(named[name]) for name, _, _ in rewrites},
    )


def _packs_of(repository: Repository, key: str) -> list[str]:
    return [pack.name for pack in repository.read(key).manifest.packs]


def _forwards(repository: Repository, named: Mapping[str, Sequence[str]]) -> tuple[set[str], list[str]]:
    """Packs that live manifests reach through a forwarding, and the forwardings that none needs."""
    known: dict[str, set[str]] = {}
    for info in repository.store.list(layout.PACKS):
        if info.key.endswith(layout.FORWARD_SUFFIX):
            name = info.key.removeprefix(f"{layout.PACKS}/").removesuffix(layout.FORWARD_SUFFIX)
            document = repository.forward(name)
            known[name] = {row.pack for row in document.rows} if document else set()
    reached: set[str] = set()
    queue = [name for name in known if name in named]
    while queue:
        for target in known.get(queue.pop(), set()) - reached:
            reached.add(target)
            queue.append(target)
    return reached, sorted(name for name in known if name not in named and name not in reached)


def _half_dead(
    repository: Repository, users: Mapping[str, Sequence[str]], sizes: Mapping[str, int]
) -> list[tuple[str, int, int]]:
    """Packs of which live manifests use less than half. Reads the manifests that name more than one pack."""
    manifests: dict[str, Manifest] = {}
    rewrites = []
    for name, keys in users.items():
        if sizes[name] < 2 * _REWRITE_AT_LEAST or not keys:
            continue
        live: dict[int, int] = {}
        for key in keys:
            if key not in manifests:
                manifests[key] = repository.read(key).manifest
            live.update(_chunks_in(manifests[key], name))
        used = sum(live.values())
        dead = sizes[name] - used
        if used < _REWRITE_BELOW * sizes[name] and dead >= _REWRITE_AT_LEAST:
            rewrites.append((name, used, dead))
    return rewrites


def _chunks_in(manifest: Manifest, name: str) -> dict[int, int]:
    """Offset -> length of the chunks of one pack that a manifest names."""
    found: dict[int, int] = {}
    for tensor in manifest.tensors:
        size = dtypes.nbytes(TensorSpec(tensor.dtype, tensor.shape))
        for number, chunk in enumerate(tensor.shards[0].chunks):
            if manifest.packs[chunk.pack].name == name:
                found[chunk.offset] = min(manifest.chunk_bytes, size - number * manifest.chunk_bytes)
    return found


def execute_prune(repository: Repository, plan: PrunePlan, *, sweep_seconds: float = 24 * 3600.0) -> Pruned:
    """Does what the plan says. Interrupted at any instant it leaves garbage for the next prune, never loss.

    Raises StoreError; CorruptionError where a chunk to be moved is damaged (its pack is then left alone
    and the rest is still done first).
    """
    store = repository.store
    for key in plan.manifests:
        store.delete(key)
    failures: list[CkptError] = []
    rewritten, freed = 0, 0
    for name, _, dead in plan.rewrites:
        try:
            _rewrite(repository, name, plan.used[name])
        except CorruptionError as error:
            _log.warning("pack %s is left as it is: %s", name, error)
            failures.append(error)
            continue
        rewritten, freed = rewritten + 1, freed + dead
    for name, size in plan.packs:
        store.delete(layout.pack_key(name))
        freed += size
    for name in plan.forwards:
        store.delete(layout.forward_key(name))
    for key in plan.references:
        store.delete(key)
    temporaries = store.sweep(sweep_seconds)
    if failures:
        raise failures[0]
    return Pruned(len(plan.manifests), len(plan.packs), rewritten, freed + temporaries, temporaries)


def _rewrite(repository: Repository, name: str, keys: Sequence[str]) -> None:
    """Moves the chunks of a pack that live manifests name to a new pack: new pack, forwarding, then deletion."""
    store = repository.store
    live: set[int] = set()
    for key in keys:
        live |= _chunks_in(repository.read(key).manifest, name).keys()
    with store.open(layout.pack_key(name)) as reader:
        header = read_header(reader.read, reader.size, name)
        chunks = [chunk for chunk in header.chunks if chunk.offset in live]
        if {chunk.offset for chunk in chunks} != live:
            raise CorruptionError(f"pack {name} lacks chunks that manifests name", key=layout.pack_key(name))
        owner = ids.new_ulid()
        folder = name.rpartition("/")[0]
        target = f"{folder}/{owner}-0-0.safetensors"
        writers: list[ObjectWriter] = []

        def create() -> ObjectWriter:
            writers.append(store.create(layout.pack_key(target)))
            return writers[0]

        chunk_bytes = repository.document.chunk_bytes
        bound = header_bound(((c.path, c.spec) for c in chunks), min(chunk_bytes, min(c.length for c in chunks)))
        pack = PackWriter(create, checkpoint=header.checkpoint, chunk_bytes=chunk_bytes, bound=bound)
        try:
            starts = [(chunk, pack.append(_piece(reader.read, chunk, name), chunk.digest)) for chunk in chunks]
            written = pack.finish()
            writers[0].commit()
        finally:
            for writer in writers:
                writer.discard()
    rows = tuple(ForwardRow(c.offset, c.digest, target, written.header_size + start) for c, start in starts)
    store.put(layout.forward_key(name), seal(Forward(pack=name, rows=rows)))
    store.delete(layout.pack_key(name))


def _piece(read: Callable[[int, int], Buffer], chunk: StoredChunk, name: str) -> Piece:
    data = read(chunk.offset, chunk.length)
    if digest_of(data) != chunk.digest:
        raise CorruptionError(
            f"the chunk at {chunk.offset} of pack {name} is damaged; `ckpt verify` lists what it hurts",
            key=layout.pack_key(name),
            offset=chunk.offset,
        )
    return Piece(chunk.path, chunk.spec, chunk.begin, data)
