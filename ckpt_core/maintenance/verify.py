"""Checking that every byte of a store is what was written, and saying which checkpoints are hurt."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import final

from ckpt_core.errors import (
    CkptError,
    CorruptionError,
    FormatError,
    MissingExtraError,
    NotFoundError,
    ObjectNotFoundError,
    SignatureError,
)
from ckpt_core.format.documents import Manifest
from ckpt_core.format.pack import read_header
from ckpt_core.maintenance.census import packs_in
from ckpt_core.maintenance.chunks import check_group, groups
from ckpt_core.maintenance.documents import documents, fault_of
from ckpt_core.maintenance.parity import check_sidecar, sidecars_in
from ckpt_core.repository import Committed, Repository, layout, open_pack

__all__ = ["CheckpointVerifier", "Problem", "Progress", "VerifyReport", "verify"]

Progress = Callable[[int, int], None]
"""Called with the bytes checked so far and the bytes to check in all."""

_THREADS = max(1, min(4, os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class Problem:
    """One damage: what kind, under which key of the store, and the ids of the checkpoints it hurts."""

    kind: str
    key: str
    detail: str
    checkpoints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification looked at and what it found. `damaged` are ids of checkpoints that do not load.

    `sizes` are the packs whose data was read; `read_data` says whether these were all.
    """

    checkpoints: int
    packs: int
    bytes_read: int
    problems: tuple[Problem, ...]
    damaged: tuple[str, ...]
    read_data: bool
    sizes: Mapping[str, int] = field(default_factory=dict, repr=False)

    @property
    def read(self) -> tuple[str, ...]:
        """The packs whose data was read."""
        return tuple(self.sizes)

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems


def verify(
    repository: Repository,
    *,
    keys: Iterable[str] | None = None,
    read_data: bool = True,
    packs: Collection[str] | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """`CheckpointVerifier.verify` of a repository."""
    return CheckpointVerifier(repository).verify(keys, read_data=read_data, packs=packs, progress=progress)


@dataclass(slots=True)
class _Pack:
    """What was found of one pack: its header in short, or the fault that hides it, and damaged chunks."""

    name: str
    size: int = 0
    data_bytes: int = 0
    header_digest: str | None = None
    fault: CkptError | None = None
    chunks: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Offset -> digest, and of one that is compressed the bytes that it takes."""
    damaged: dict[int, str] = field(default_factory=dict)
    """Offset -> what is wrong."""

    @property
    def missing(self) -> bool:
        return isinstance(self.fault, ObjectNotFoundError)

    @property
    def hurts(self) -> bool:
        return self.fault is not None or bool(self.damaged)


@final
class CheckpointVerifier:
    """Checks the checkpoints of one repository. For one thread at a time.

    Only what stands in its own store counts: what a mirror could give instead is damage all the same. A pack that
    a prune took out of circulation and did not delete is looked at where it is, as a load does. (Manifests are
    looked at one at a time, since all of them together may not fit into memory.)
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository.alone()
        self._trusted = repository.trusted

    def verify(
        self,
        keys: Iterable[str] | None = None,
        *,
        read_data: bool = True,
        packs: Collection[str] | None = None,
        progress: Progress | None = None,
    ) -> VerifyReport:
        """Checks the manifests under `keys` and the packs they name, or (None) everything in the store.

        With `read_data` every byte of the packs (or of these `packs` alone) is read and hashed; without, their
        headers only. Damage is reported, not raised, and so is what the disk refuses to read. What is forgotten
        meanwhile is left out. Raises NotFoundError for one of `keys` that is not there; StoreError where the
        store cannot be listed; MissingExtraError where chunks are compressed that cannot be expanded here.
        """
        self._clear()
        return self._run(None if keys is None else list(keys), read_data, packs, progress)

    def check_pack(self, name: str, read: Callable[[int], object] = lambda count: None) -> bool | None:
        """Whether every byte of a pack, and of its parity, is what was written; None where there is no such pack.

        What it hurts is not looked for. `read` is told of some bytes at a time, and may wait. Raises
        MissingExtraError.
        """
        algorithm = self._repository.document.digest
        try:
            with self._repository.store.open(layout.pack_key(name)) as reader:
                header = read_header(reader.read, reader.size, name)
                for group in groups(header.chunks):
                    if check_group(reader.read, group, algorithm):
                        return False
                    read(sum(chunk.length for chunk in group))
        except ObjectNotFoundError:
            return None
        except MissingExtraError:
            raise
        except CkptError:
            return False
        return next(_sidecars(self._repository, {name}, [name]), None) is None

    def _clear(self) -> None:
        self._packs: dict[str, _Pack] = {}
        self._forwards: dict[str, dict[int, tuple[str, int]]] = {}
        self._problems: list[Problem] = []
        self._hurt: dict[tuple[str, str, str], set[str]] = {}  # (kind, key, detail) -> ids

    def _run(
        self,
        keys: list[str] | None,
        read_data: bool,
        chosen: Collection[str] | None,
        progress: Progress | None,
    ) -> VerifyReport:
        listed = [found.key for found in self._repository.manifest_keys()] if keys is None else keys
        count = 0
        for key in listed:
            manifest = self._manifest(key, required=keys is not None)
            if manifest is not None:
                count += 1
                self._check_places(manifest)
        if keys is None:
            for name, _ in packs_in(self._repository):
                self._pack(name)
        read: set[str] = set()
        if read_data:
            read = {name for name in self._packs if chosen is None or name in chosen}
            self._read_packs([self._packs[name] for name in sorted(read)], progress)
        if any(pack.hurts for pack in self._packs.values()):
            self._blame(listed)
        self._collect()
        if keys is None:
            self._problems.extend(_side_documents(self._repository))
            self._problems.extend(_sidecars(self._repository, read))
        problems = tuple(dict.fromkeys(self._still_true()))
        return VerifyReport(
            checkpoints=count,
            packs=len(self._packs),
            bytes_read=sum(
                pack.size if pack.name in read else pack.size - pack.data_bytes
                for pack in self._packs.values()
            ),
            problems=problems,
            damaged=tuple(sorted({checkpoint for problem in problems for checkpoint in problem.checkpoints})),
            read_data=read_data and chosen is None,
            sizes={name: self._packs[name].size for name in sorted(read)},
        )

    def _manifest(self, key: str, required: bool = False, *, again: bool = False) -> Manifest | None:
        try:
            committed = self._repository.read(key)
            if self._trusted is not None and not again:
                self._check_signature(committed)
            return committed.manifest
        except NotFoundError:
            if required:
                raise
        except CkptError as error:
            if not again:
                parsed = layout.parse_manifest_key(key)
                self._problems.append(Problem("manifest", key, str(error), (parsed.id,) if parsed else ()))
        return None

    def _check_signature(self, committed: Committed) -> None:
        assert self._trusted is not None
        try:
            self._repository.signatures.check(committed, self._trusted)
        except (FormatError, SignatureError) as error:
            self._problems.append(Problem("signature", committed.key, str(error), (committed.manifest.id,)))

    def _pack(self, name: str) -> _Pack:
        if name not in self._packs:
            pack = self._packs[name] = _Pack(name)
            try:
                with open_pack(self._repository.store, name) as reader:
                    pack.size = reader.size
                    header = read_header(reader.read, reader.size, name)
                pack.header_digest, pack.data_bytes = header.digest, header.data_bytes
                pack.chunks = {
                    chunk.offset: (chunk.digest, 0 if chunk.expanded is None else chunk.length)
                    for chunk in header.chunks
                }
            except CkptError as error:
                pack.fault = error
        return self._packs[name]

    def _check_places(self, manifest: Manifest) -> None:
        """Whether the packs are those that the manifest names, and its chunks in them where it says."""
        for record in manifest.packs:
            pack = self._pack(record.name)
            if pack.header_digest not in (None, record.header):
                place = layout.pack_key(record.name)
                self._hurts(manifest, "header", place, "the pack is not the one that the manifest names")
        for name, offset, chunk in self._chunks(manifest):
            pack = self._pack(name)
            if pack.fault is None and pack.chunks.get(offset) != chunk:
                detail = f"the pack does not hold the chunk that should begin at {offset}"
                self._hurts(manifest, "missing", layout.pack_key(name), detail)

    def _blame(self, keys: Sequence[str]) -> None:
        """Whom the damaged packs hurt."""
        for key in keys:
            manifest = self._manifest(key, again=True)
            for name, offset, _ in self._chunks(manifest) if manifest is not None else ():
                pack = self._packs.get(name)
                if manifest is None or pack is None:
                    continue
                if pack.missing:
                    self._hurts(
                        manifest, "missing", layout.pack_key(name), "the pack is missing from the store"
                    )
                elif pack.fault is not None or offset in pack.damaged:
                    self._hurts(manifest, "", layout.pack_key(name), "")

    def _hurts(self, manifest: Manifest, kind: str, place: str, detail: str) -> None:
        self._hurt.setdefault((kind, place, detail), set()).add(manifest.id)

    def _chunks(self, manifest: Manifest) -> Iterator[tuple[str, int, tuple[str, int]]]:
        """(pack, offset, (digest, bytes that it takes if compressed)) of every chunk, where it is now:
        forwardings are followed."""
        for tensor in manifest.tensors:
            (shard,) = tensor.shards
            for number, chunk in enumerate(shard.chunks):
                name, offset = manifest.packs[chunk.pack].name, chunk.offset
                for _ in range(100):  # a damaged store may lead in circles
                    if not self._pack(name).missing or offset not in self._forward(name):
                        break
                    name, offset = self._forward(name)[offset]
                yield name, offset, (chunk.digest, shard.stored_length(number))

    def _forward(self, name: str) -> dict[int, tuple[str, int]]:
        if name not in self._forwards:
            self._forwards[name] = {}
            try:
                document = self._repository.forward(name)
            except CkptError as error:
                self._problems.append(Problem("forward", layout.forward_key(name), str(error)))
            else:
                for row in document.rows if document is not None else ():
                    self._forwards[name][row.offset] = (row.pack, row.new_offset)
        return self._forwards[name]

    def _read_packs(self, chosen: Iterable[_Pack], progress: Progress | None) -> None:
        packs = [pack for pack in chosen if pack.fault is None]
        total, done = sum(pack.data_bytes for pack in packs), 0
        algorithm = self._repository.document.digest
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="ckpt-verify") as pool:
            for pack in packs:
                try:
                    with open_pack(self._repository.store, pack.name) as reader:
                        header = read_header(reader.read, reader.size, pack.name)
                        batches = list(groups(header.chunks))
                        for group, faults in zip(
                            batches,
                            pool.map(lambda g, r=reader: check_group(r.read, g, algorithm), batches),
                            strict=True,
                        ):
                            pack.damaged.update(faults)
                            done += sum(chunk.length for chunk in group)
                            if progress is not None:
                                progress(done, total)
                except MissingExtraError:  # of what cannot be looked into nothing can be said
                    raise
                except CkptError as error:  # changed or deleted since its header was read
                    pack.fault = error

    def _collect(self) -> None:
        blamed: dict[str, set[str]] = {}
        for (kind, place, detail), ids in sorted(self._hurt.items()):
            if kind:
                self._problems.append(Problem(kind, place, detail, tuple(sorted(ids))))
            else:
                blamed.setdefault(place, set()).update(ids)
        for pack in self._packs.values():
            place = layout.pack_key(pack.name)
            hurt = tuple(sorted(blamed.get(place, ())))
            if pack.fault is not None and not pack.missing:
                kind = "header" if isinstance(pack.fault, CorruptionError) else pack.fault.kind
                self._problems.append(Problem(kind, place, str(pack.fault), hurt))
            for _, detail in sorted(pack.damaged.items()):
                self._problems.append(Problem("digest", place, detail, hurt))

    def _still_true(self) -> Iterator[Problem]:
        """Without manifests that were forgotten, and then deleted, while this went on."""
        for problem in self._problems:
            if problem.kind != "manifest" or self._repository.store.exists(problem.key):
                yield problem


def _sidecars(
    repository: Repository, read: Collection[str], names: Iterable[str] | None = None
) -> Iterator[Problem]:
    """Damage to parity (of these packs), which hurts nobody as long as the packs are sound."""
    for name in sidecars_in(repository) if names is None else names:
        try:
            fault = check_sidecar(repository, name, read_data=name in read)
        except ObjectNotFoundError:  # deleted since the listing
            continue
        except CkptError as error:
            fault = str(error)
        if fault is not None:
            yield Problem("parity", layout.parity_key(name), fault)


def _side_documents(repository: Repository) -> Iterator[Problem]:
    """Damage to what no checkpoint needs in order to load."""
    for document in documents(repository, live=False):
        fault = fault_of(document)
        if fault is not None:
            yield Problem(document.kind, document.key, str(fault))
