"""What forgetting would free, before anything is forgotten: a prune is planned as if it were done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ckpt_core.errors import CorruptionError, NotFoundError
from ckpt_core.maintenance.prune import PrunePlan, plan_prune
from ckpt_core.model import Checkpoint
from ckpt_core.repository import Repository
from ckpt_core.repository.layout import ManifestKey

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


class _AsIfForgotten(Repository):
    """A repository of which some checkpoints are already in the trash. For planning only."""

    def __init__(self, repository: Repository, forgotten: Iterable[Checkpoint]) -> None:
        super().__init__(repository.store, repository.document)
        self._forgotten = {checkpoint.key for checkpoint in forgotten}

    def manifest_keys(self, experiment: str | None = None, *, trash: bool = False) -> Iterator[ManifestKey]:
        for found in super().manifest_keys(experiment, trash=False):
            if (found.key in self._forgotten) == trash:
                yield found
        if trash:
            yield from super().manifest_keys(experiment, trash=True)


def forecast(repository: Repository, doomed: Sequence[Checkpoint]) -> Forecast:
    """What a prune would free after `doomed` were forgotten. Changes nothing. Raises StoreError."""
    if not doomed:
        return Forecast(0, {})
    parts = {checkpoint.id: 0 for checkpoint in doomed}
    try:
        then = _frees(plan_prune(_AsIfForgotten(repository, doomed)))
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
