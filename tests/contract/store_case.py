"""What tests of stores and repositories share: a repository with small chunks, a commit and a load in one line."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from ckpt_core import clock, ids
from ckpt_core.format.documents import Manifest, StoreDocument
from ckpt_core.format.sealed import seal
from ckpt_core.model import Attempt, Snapshot
from ckpt_core.repository import Committed, Draft, Repository, Verify
from ckpt_core.stores import Store
from ckpt_core.tree import Selection, borrow, dtypes, flatten, rebuild, rebuild_like, registry, wanted_tensors

ATTEMPT = Attempt(1, "0" * 26, "0" * 26)
CHUNK = 4096


def new_repository(store: Store, chunk_bytes: int = CHUNK) -> Repository:
    """A repository whose chunks are so short that small states have many."""
    document = StoreDocument(
        store_id=ids.new_ulid(), chunk_bytes=chunk_bytes, created_at=clock.to_text(clock.now())
    )
    store.put_new("store.json", seal(document))
    return Repository.open(store)


def snapshot_of(state: Any) -> Snapshot:
    """A snapshot over the live tensors, as a save that waits takes it."""
    return borrow(flatten(state, registry))


def draft(step: int = 1, experiment: str = "digits", **facts: Any) -> Draft:
    return Draft(experiment, step, facts.pop("attempt", ATTEMPT), facts.pop("metrics", {}), {}, **facts)


def commit(
    repository: Repository,
    state: Any,
    step: int = 1,
    base: Manifest | None = None,
    experiment: str = "digits",
    compression: str | None = None,
) -> Committed:
    """Commits a state."""
    snapshot = snapshot_of(state)
    return repository.commit(snapshot, draft(step, experiment), base=base, compression=compression)


def load(
    repository: Repository, key: str, *, like: Any = None, include: Any = None, verify: Verify = "full"
) -> Any:
    """Reads a whole state back, into `like` where it is given."""
    manifest = repository.read(key).manifest
    reader = repository.reader(manifest, verify)

    def get(index: int, target: Any) -> Any:
        spec = reader.spec(index)
        data = np.empty(dtypes.nbytes(spec), np.uint8)
        codec: Any = registry.tensor_named(manifest.tensors[index].kind)
        if target is not None:
            codec = registry.find(type(target))
            direct = codec.destination(target, spec)
            if direct is not None:
                reader.read_all([(index, direct)])
                return target
        reader.read_all([(index, data)])
        value = codec.wrap(spec, data)
        return value if target is None else codec.assign(target, value)

    cache: dict[int, Any] = {}

    def once(index: int, target: Any) -> Any:
        if target is not None:
            return get(index, target)
        if index not in cache:
            cache[index] = get(index, None)
        return cache[index]

    try:
        selection = Selection(include)
        if verify == "full":
            wanted = wanted_tensors(manifest.state, like, registry, selection, plain=like is None)
            reader.check_headers(index for index, _ in wanted)
        if like is None:
            return rebuild(manifest.state, once, registry, selection)
        return rebuild_like(manifest.state, like, once, registry, selection)
    finally:
        reader.close()


def same(left: Any, right: Any) -> bool:
    """Whether two states are the same to the last bit: types, order of keys, NaN payloads, signs of zeros."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, np.generic):
        return left.dtype == right.dtype and left.tobytes() == right.tobytes()
    if isinstance(left, float):
        return struct.pack(">d", left) == struct.pack(">d", right)
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    return bool(left == right)


def keys_of(store: Store) -> list[str]:
    """Every object of a store but the catalog."""
    folders = ("checkpoints", "packs", "trash", "refs", "metrics", "leases")
    return [info.key for folder in folders for info in store.list(folder)]
