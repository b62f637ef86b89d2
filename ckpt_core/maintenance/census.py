"""What stands in a store and what its checkpoints need of it: the ground on which prune decides.

Counted once from the manifests themselves, which are the truth, and then kept up with what is new and gone.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

from ckpt_core.errors import CkptError, CorruptionError, NotFoundError, StoreError
from ckpt_core.format.documents import Manifest
from ckpt_core.format.pack import read_header
from ckpt_core.model import TensorSpec
from ckpt_core.repository import Repository, layout
from ckpt_core.tree import dtypes

__all__ = ["Census", "Needs", "chunks_of", "live_keys", "packs_in"]


def packs_in(repository: Repository) -> Iterator[tuple[str, int]]:
    """Name and size of every pack in the store."""
    for info in repository.store.list(layout.PACKS):
        if info.key.endswith(".safetensors"):
            yield info.key.removeprefix(f"{layout.PACKS}/"), info.size


def live_keys(repository: Repository, known: Container[str] = ()) -> Iterator[str]:
    """The key of every manifest that is not forgotten. Those `known` are not taken apart, which takes longer
    than to list them."""
    store = repository.store
    for folder in store.folders(layout.MANIFESTS):
        for name in store.names(f"{layout.MANIFESTS}/{folder}"):
            key = f"{layout.MANIFESTS}/{folder}/{name}"
            if key in known or layout.parse_manifest_key(key) is not None:
                yield key


def chunks_of(manifest: Manifest) -> Iterator[tuple[str, int, int]]:
    """(pack, offset, length there) of every chunk that a manifest names."""
    for tensor in manifest.tensors:
        size = dtypes.nbytes(TensorSpec(tensor.dtype, tensor.shape))
        (shard,) = tensor.shards
        for number, chunk in enumerate(shard.chunks):
            length = min(manifest.chunk_bytes, size - number * manifest.chunk_bytes)
            yield manifest.packs[chunk.pack].name, chunk.offset, shard.stored_length(number) or length


@dataclass(slots=True)
class Needs:
    """What the live manifests come to, with every forwarding followed."""

    chunks: dict[str, dict[int, int]]
    """Standing pack -> offset -> length of each chunk in it that something needs."""
    forwards: set[str] = field(default_factory=set)
    """Packs whose forwarding something needs."""
    missing: set[str] = field(default_factory=set)
    """Packs that something needs and that do not stand."""


class Census:
    """The packs, the forwardings, and the use of them by live manifests. For one thread at a time."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._uses: dict[str, dict[int, list[int]]] = {}  # pack -> offset -> [how often named, length]
        self._data_bytes: dict[str, int] = {}
        self.keys: set[str] = set()
        self.sizes: dict[str, int] = {}
        self.forwards: dict[str, dict[int, tuple[str, int]]] = {}
        self.withdrawn: dict[str, int] = {}
        self.sidecars: set[str] = set()
        """Packs, standing or not, that have parity."""

    @classmethod
    def take(cls, repository: Repository, keep: Iterable[str] = ()) -> Self:
        """Reads every manifest and lists all packs. `keep`: keys of forgotten ones that count all the same.

        Raises CorruptionError where a live manifest cannot be read: what it needs is then not known.
        """
        census = cls(repository)
        census.update([*live_keys(repository), *keep])
        census._keep_quarantined()
        census.sizes.clear()  # the manifests say what stood when they were written; this is what stands now
        for info in repository.store.list(layout.PACKS):
            name = info.key.removeprefix(f"{layout.PACKS}/")
            if name.endswith(layout.FORWARD_SUFFIX):
                census.note_forward(name.removesuffix(layout.FORWARD_SUFFIX))
            elif name.endswith(".safetensors"):
                census.sizes[name] = info.size
            elif name.endswith(layout.PARITY_SUFFIX):
                census.sidecars.add(f"{name.removesuffix(layout.PARITY_SUFFIX)}.safetensors")
        for info in repository.store.list(layout.WITHDRAWN):
            census.withdrawn[info.key.removeprefix(f"{layout.WITHDRAWN}/")] = info.size
        return census

    def update(self, keys: Iterable[str]) -> None:
        """Brings the census in line with the manifests that stand now. Raises NotFoundError where one that
        was counted is gone for good; then only a new census can tell."""
        standing = set(keys)
        for key in sorted(self.keys - standing):
            self._count(self._moved(key), -1)
            self.keys.discard(key)
        for key in sorted(standing - self.keys):
            try:
                manifest = self._repository.read(key).manifest
            except NotFoundError:  # forgotten since the listing
                continue
            except StoreError:
                raise
            except CkptError as error:
                if key.startswith(layout.TRASH):  # it cannot be brought back anyway
                    continue
                raise CorruptionError(
                    f"nothing can be pruned, as it is not known what the damaged manifest {key} needs: "
                    f"put it back from a backup, or delete that file, then prune again ({error})",
                    kind="document",
                    key=key,
                ) from error
            self._count(manifest, +1)
            self.keys.add(key)

    def note_forward(self, name: str) -> None:
        """Reads where the chunks of a rewritten pack have gone. Raises CorruptionError."""
        document = self._repository.forward(name)
        if document is not None:
            self.forwards[name] = {row.offset: (row.pack, row.new_offset) for row in document.rows}

    def note_standing(self, name: str) -> None:
        """A pack was written or put back."""
        self.sizes[name] = self._repository.store.info(layout.pack_key(name)).size

    def note_gone(self, name: str) -> None:
        """A pack was deleted or taken out of circulation."""
        self.sizes.pop(name, None)

    def is_named(self, name: str) -> bool:
        """Whether a live manifest names this pack, standing or not."""
        return name in self._uses

    def needs(self, names: Iterable[str]) -> Needs:
        """What live manifests need of these standing packs, directly and through forwardings."""
        needs = Needs({name: {} for name in names if name in self.sizes})
        for name, chunks in needs.chunks.items():
            chunks.update((offset, length) for offset, (_, length) in self._uses.get(name, {}).items())
        for name in self._uses.keys() - self.sizes.keys():
            for offset, (_, length) in self._uses[name].items():
                *way, (place, at) = self._follow(name, offset)
                needs.forwards.update(passed for passed, _ in way)
                if place not in self.sizes:
                    needs.missing.add(place)
                elif place in needs.chunks:
                    needs.chunks[place][at] = length
        return needs

    def data_bytes(self, name: str) -> int:
        """The size of a standing pack without its header, which may outweigh thousands of tiny tensors.

        Raises CorruptionError, ObjectNotFoundError.
        """
        if name not in self._data_bytes:
            with self._repository.store.open(layout.pack_key(name)) as reader:
                self._data_bytes[name] = read_header(reader.read, reader.size, name).data_bytes
        return self._data_bytes[name]

    def targets(self, name: str) -> set[str]:
        """Packs to which this one was rewritten, however often."""
        return {
            place
            for offset in self.forwards.get(name, {})
            for place, _ in self._follow(name, offset, past=True)
        }

    def sources(self, name: str) -> tuple[str, ...]:
        """Rewritten packs whose forwarding leads straight to this one."""
        return tuple(
            sorted(
                source for source, rows in self.forwards.items() if any(to == name for to, _ in rows.values())
            )
        )

    def _follow(self, name: str, offset: int, *, past: bool = False) -> list[tuple[str, int]]:
        """The way of a chunk through forwardings, to the first pack that stands, or `past` it to the last."""
        way = [(name, offset)]
        while len(way) < 100 and (past or name not in self.sizes):
            step = self.forwards.get(name, {}).get(offset)
            if step is None:
                break
            name, offset = step
            way.append(step)
        return way[1:] if past else way

    def _moved(self, key: str) -> Manifest:
        """A manifest that was forgotten, or that is no longer kept, or that was brought back."""
        if not key.startswith(layout.TRASH):
            return self._repository.read(layout.trash_key(key)).manifest
        try:
            return self._repository.read(key).manifest
        except NotFoundError:
            return self._repository.read(layout.live_key(key)).manifest

    def _keep_quarantined(self) -> None:
        """What checkpoints in quarantine need is kept, as far as they can be read: they may be healed yet."""
        for key in [found.key for found in self._repository.manifest_keys(quarantine=True)]:
            try:
                self._count(self._repository.read(key).manifest, +1)
            except StoreError:
                raise
            except CkptError:
                continue

    def _count(self, manifest: Manifest, sign: int) -> None:
        for name, offset, length in chunks_of(manifest):
            use = self._uses.setdefault(name, {}).setdefault(offset, [0, length])
            use[0] += sign
            if use[0] <= 0:
                del self._uses[name][offset]
                if not self._uses[name]:
                    del self._uses[name]
        for record in manifest.packs if sign > 0 else ():
            self._data_bytes[record.name] = record.size - record.header_size
            if record.name not in self.forwards:
                self.sizes[record.name] = record.size
