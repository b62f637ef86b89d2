"""Checking that every byte of a store is what was written, and saying which checkpoints are hurt."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from ckpt_core.errors import CkptError, CorruptionError, NotFoundError, ObjectNotFoundError
from ckpt_core.format.documents import Manifest
from ckpt_core.format.pack import PackHeader, StoredChunk, read_header
from ckpt_core.repository import Committed, MetricSegments, References, Repository, layout
from ckpt_core.repository.digests import digest_of
from ckpt_core.stores import ObjectReader

__all__ = ["Problem", "Progress", "VerifyReport", "verify"]

Progress = Callable[[int, int], None]
"""Called with the bytes checked so far and the bytes to check in all."""

_THREADS = max(1, min(4, os.cpu_count() or 1))
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Problem:
    """One damage: what kind, under which key of the store, and the ids of the checkpoints it hurts."""

    kind: str
    key: str
    detail: str
    checkpoints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification looked at and what it found. `damaged` are ids of checkpoints that do not load."""

    checkpoints: int
    packs: int
    bytes_read: int
    problems: tuple[Problem, ...]
    damaged: tuple[str, ...]
    read_data: bool

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems


@dataclass(slots=True)
class _Pack:
    """What was found of one pack: its header, or the fault that hid it, and offsets of damaged chunks."""

    name: str
    header: PackHeader | None = None
    size: int = 0
    fault: CkptError | None = None
    chunks: dict[int, StoredChunk] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)


def verify(
    repository: Repository,
    *,
    keys: Iterable[str] | None = None,
    read_data: bool = True,
    progress: Progress | None = None,
) -> VerifyReport:
    """Checks the manifests under `keys` and the packs they name, or (None) everything in the store.

    With `read_data` every byte of the packs is read and hashed; without, their headers only. Damage is
    reported, not raised; StoreError is raised where the store itself cannot be read.
    """
    everything = keys is None
    manifests, problems = _manifests(repository, keys)
    names = {pack.name for committed in manifests for pack in committed.manifest.packs}
    if everything:
        names |= {name for name, _ in packs_in(repository)}
    packs = {name: _open(repository, name) for name in sorted(names)}
    forwards = _forwards(repository, packs, problems)
    _read_packs(repository, [p for p in packs.values() if p.header is not None], read_data, progress)
    hurt: dict[tuple[str, str], set[str]] = {}
    for committed in manifests:
        for place in _hurt_places(committed.manifest, packs, forwards):
            hurt.setdefault(place, set()).add(committed.manifest.id)
    problems.extend(_pack_problems(packs, forwards, hurt))
    problems.extend(
        Problem("missing", key, detail, tuple(sorted(ids)))
        for (key, detail), ids in sorted(hurt.items())
        if detail and not any(p.key == key for p in problems)
    )
    if everything:
        problems.extend(_side_documents(repository))
    damaged = {checkpoint for problem in problems for checkpoint in problem.checkpoints}
    read = sum(p.header.header_size + (p.header.data_bytes if read_data else 0) for p in packs.values() if p.header)
    return VerifyReport(len(manifests), len(packs), read, tuple(problems), tuple(sorted(damaged)), read_data)


def packs_in(repository: Repository) -> Iterator[tuple[str, int]]:
    """Name and size of every pack in the store."""
    for info in repository.store.list(layout.PACKS):
        if info.key.endswith(".safetensors"):
            yield info.key.removeprefix(f"{layout.PACKS}/"), info.size


def _manifests(repository: Repository, keys: Iterable[str] | None) -> tuple[list[Committed], list[Problem]]:
    found, problems = [], []
    for key in [k.key for k in repository.manifest_keys()] if keys is None else keys:
        try:
            found.append(repository.read(key))
        except NotFoundError:
            if keys is not None:
                raise
        except CkptError as error:
            parsed = layout.parse_manifest_key(key)
            problems.append(Problem("manifest", key, str(error), (parsed.id,) if parsed else ()))
    return found, problems


def _open(repository: Repository, name: str) -> _Pack:
    pack = _Pack(name)
    try:
        with repository.store.open(layout.pack_key(name)) as reader:
            pack.size = reader.size
            pack.header = read_header(reader.read, reader.size, name)
            pack.chunks = {chunk.offset: chunk for chunk in pack.header.chunks}
    except CkptError as error:
        pack.fault = error
    return pack


def _forwards(
    repository: Repository, packs: dict[str, _Pack], problems: list[Problem]
) -> dict[str, dict[int, tuple[str, int]]]:
    """Where the chunks of absent packs have gone; the packs they have gone to are added to `packs`."""
    forwards: dict[str, dict[int, tuple[str, int]]] = {}
    queue = [name for name, pack in packs.items() if isinstance(pack.fault, ObjectNotFoundError)]
    while queue:
        name = queue.pop()
        try:
            document = repository.forward(name)
        except CkptError as error:
            problems.append(Problem("forward", layout.forward_key(name), str(error)))
            continue
        if document is None:
            continue
        forwards[name] = {row.offset: (row.pack, row.new_offset) for row in document.rows}
        for target in sorted({row.pack for row in document.rows} - packs.keys()):
            packs[target] = _open(repository, target)
            if isinstance(packs[target].fault, ObjectNotFoundError):
                queue.append(target)
    return forwards


def _read_packs(repository: Repository, packs: Sequence[_Pack], read_data: bool, progress: Progress | None) -> None:
    total = sum(p.size for p in packs)
    done = 0
    for pack in packs:
        if read_data:
            with repository.store.open(layout.pack_key(pack.name)) as reader:
                for chunk, fault in _parallel(pack.chunks.values(), lambda c, r=reader: _check(r, c)):
                    if fault:
                        pack.damaged[chunk.offset] = fault
                    if progress is not None:
                        progress(done + chunk.offset + chunk.length, total)
        done += pack.size
        if progress is not None:
            progress(done, total)


def _parallel(items: Iterable[T], work: Callable[[T], str | None]) -> Iterator[tuple[T, str | None]]:
    rows = list(items)
    if len(rows) < 2:
        yield from ((row, work(row)) for row in rows)
        return
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ckpt-verify") as pool:
        yield from zip(rows, pool.map(work, rows), strict=True)


def _check(reader: ObjectReader, chunk: StoredChunk) -> str | None:
    data = reader.read(chunk.offset, chunk.length)
    if data.nbytes != chunk.length:
        return f"the pack ends inside the chunk at {chunk.offset}"
    if digest_of(data) != chunk.digest:
        return f"the SHA-256 of bytes {chunk.offset} to {chunk.offset + chunk.length} ({chunk.path}) does not match"
    return None


def _hurt_places(
    manifest: Manifest, packs: dict[str, _Pack], forwards: dict[str, dict[int, tuple[str, int]]]
) -> Iterator[tuple[str, str]]:
    """(key, detail) of everything that keeps this manifest's tensors from loading. The detail is empty
    where the pack's own check already tells it."""
    for record in manifest.packs:
        header = packs[record.name].header
        if header is not None and (header.digest != record.header or packs[record.name].size != record.size):
            yield layout.pack_key(record.name), "the pack is not the one that the manifest names"
    for tensor in manifest.tensors:
        for chunk in tensor.shards[0].chunks:
            name, offset = manifest.packs[chunk.pack].name, chunk.offset
            while name in forwards and offset in forwards[name]:
                name, offset = forwards[name][offset]
            pack = packs[name]
            if pack.header is None:
                missing = isinstance(pack.fault, ObjectNotFoundError)
                yield layout.pack_key(name), "the pack is missing from the store" if missing else ""
            elif offset in pack.damaged:
                yield layout.pack_key(name), ""
            elif offset not in pack.chunks or pack.chunks[offset].digest != chunk.digest:
                yield layout.pack_key(name), f"the pack no longer holds the chunk at {offset}"


def _pack_problems(
    packs: dict[str, _Pack],
    forwards: dict[str, dict[int, tuple[str, int]]],
    hurt: dict[tuple[str, str], set[str]],
) -> Iterator[Problem]:
    for name, pack in packs.items():
        key = layout.pack_key(name)
        ids = sorted({checkpoint for (place, _), found in hurt.items() if place == key for checkpoint in found})
        if pack.fault is not None and not isinstance(pack.fault, ObjectNotFoundError):
            kind = "header" if isinstance(pack.fault, CorruptionError) else pack.fault.kind
            yield Problem(kind, key, str(pack.fault), tuple(ids))
        for _, detail in sorted(pack.damaged.items()):
            yield Problem("digest", key, detail, tuple(ids))


def _side_documents(repository: Repository) -> Iterator[Problem]:
    references, segments = References(repository.store), MetricSegments(repository.store)
    for key in references.keys():
        try:
            references.read(key)
        except CkptError as error:
            yield Problem("reference", key, str(error))
    for key in segments.keys():
        try:
            segments.read(key)
        except CkptError as error:
            yield Problem("metrics", key, str(error))
    for manifest in repository.manifest_keys(trash=True):
        try:
            repository.read(manifest.key)
        except CkptError as error:
            yield Problem("manifest", manifest.key, str(error))
    for info in repository.store.list(layout.PACKS):
        if info.key.endswith(layout.FORWARD_SUFFIX):
            try:
                repository.forward(info.key.removeprefix(f"{layout.PACKS}/").removesuffix(layout.FORWARD_SUFFIX))
            except CkptError as error:
                yield Problem("forward", info.key, str(error))
