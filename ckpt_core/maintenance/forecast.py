"""What forgetting would free, before anything is forgotten: a prune is planned as if it were done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from ckpt_core.errors import CorruptionError, NotFoundError, ObjectNotFoundError, StoreError
from ckpt_core.maintenance.prune import PrunePlan, plan_prune
from ckpt_core.model import Checkpoint
from ckpt_core.repository import Repository, layout
from ckpt_core.stores import ObjectInfo, ObjectReader, ObjectWriter, Store
from ckpt_core.stores.contract import Bytes

__all__ = ["Forecast", "forecast"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """Bytes that a prune after the forget would free, in all and for each checkpoint (by id).

    Bytes that several of them share are counted at the newest, so that the parts add up. Bytes that are
    free to go already are counted in none. `frees` is None where a damaged manifest keeps that from being
    known.
    """

    frees: int | None
    by_checkpoint: dict[str, int]


class _AsIfForgotten(Store):
    """A store of which some manifests seem to lie in the trash already. For planning: nothing can be written."""

    def __init__(self, store: Store, keys: Iterable[str]) -> None:
        self.url = store.url
        self._store = store
        self._moved = {layout.trash_key(key): key for key in keys}
        self._gone = frozenset(self._moved.values())

    def open(self, key: str) -> AbstractContextManager[ObjectReader]:
        return self._store.open(self._place(key))

    def info(self, key: str) -> ObjectInfo:
        return replace(self._store.info(self._place(key)), key=key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        found = [info for info in self._store.list(prefix) if info.key not in self._gone]
        found += [self.info(key) for key in self._moved if key.startswith(f"{prefix}/") and self.exists(key)]
        yield from sorted(found, key=lambda info: info.key.split("/"))

    def now(self) -> float:
        return self._store.now()

    def free_bytes(self) -> int | None:
        return self._store.free_bytes()

    def create(self, key: str) -> ObjectWriter:
        raise self._refusal(key)

    def put(self, key: str, data: Bytes, *, durable: bool = True) -> None:
        raise self._refusal(key)

    def move(self, key: str, target: str) -> None:
        raise self._refusal(key)

    def delete(self, key: str, *, durable: bool = True) -> None:
        raise self._refusal(key)

    def sweep(self, older_than: float) -> int:
        raise self._refusal("")

    def _place(self, key: str) -> str:
        if key in self._gone:
            raise ObjectNotFoundError(f"{key} is taken for forgotten", key=key)
        return self._moved.get(key, key)

    def _refusal(self, key: str) -> StoreError:
        return StoreError(
            f"{key} cannot be written while a forget is only thought through", kind="read-only", key=key
        )


def forecast(repository: Repository, doomed: Sequence[Checkpoint]) -> Forecast:
    """What a prune would free after `doomed` were forgotten. Changes nothing. Raises StoreError."""
    if not doomed:
        return Forecast(0, {})
    parts = {checkpoint.id: 0 for checkpoint in doomed}
    try:
        then = _frees(plan_prune(_as_if_forgotten(repository, doomed)))
    except CorruptionError:
        return Forecast(None, parts)
    try:
        now = _frees(plan_prune(repository))
    except CorruptionError:  # of one that is to go: with it there goes what kept a prune from being planned
        now = {}
    owners: dict[str, str] = {}
    for checkpoint in sorted(doomed, key=lambda c: c.order):
        try:
            packs = repository.read(checkpoint.key).packs
        except (NotFoundError, CorruptionError):  # forgotten meanwhile, or damaged: it counts for nothing
            continue
        owners |= dict.fromkeys((name for name, _ in packs), checkpoint.id)
    for name, size in then.items():
        if name in owners:
            parts[owners[name]] += size - now.get(name, 0)
    return Forecast(sum(parts.values()), parts)


def _frees(plan: PrunePlan) -> dict[str, int]:
    return dict(plan.packs) | {name: dead for name, _, dead in plan.rewrites}


def _as_if_forgotten(repository: Repository, doomed: Iterable[Checkpoint]) -> Repository:
    keys = [checkpoint.key for checkpoint in doomed]
    return Repository(_AsIfForgotten(repository.store, keys), repository.document)
