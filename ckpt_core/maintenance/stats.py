"""What a store holds and what it costs: logical against stored bytes, packs, trash, the largest tensors.

Reads listings, the catalog's answers and the newest manifest of each experiment; no data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ckpt_core.errors import CkptError, NotFoundError
from ckpt_core.format.names import encode_name
from ckpt_core.maintenance.census import packs_in
from ckpt_core.maintenance.leaves import tensor_specs
from ckpt_core.model import Checkpoint, TensorSpec
from ckpt_core.repository import Repository, layout
from ckpt_core.tree import dtypes

__all__ = ["ExperimentStats", "StoreStats", "TensorStats", "gather"]

PacksOf = Callable[[str], Iterable[str]]


@dataclass(frozen=True, slots=True)
class TensorStats:
    """One tensor of the newest checkpoint of an experiment."""

    experiment: str
    path: str
    spec: TensorSpec
    nbytes: int


@dataclass(frozen=True, slots=True)
class ExperimentStats:
    """`stored_bytes` are the packs in the experiment's folder, whoever names them."""

    name: str
    checkpoints: int
    logical_bytes: int
    stored_bytes: int
    packs: int

    @property
    def ratio(self) -> float | None:
        """Logical bytes for each stored byte."""
        return self.logical_bytes / self.stored_bytes if self.stored_bytes else None


@dataclass(frozen=True, slots=True)
class StoreStats:
    """`dead_bytes` are packs that no checkpoint names: `trash_bytes` of them by forgotten checkpoints,
    the rest by nothing. `parity_bytes` are sidecars; `other_bytes`: manifests, references, metric
    segments, signatures, and what attempts tell."""

    checkpoints: int
    logical_bytes: int
    stored_bytes: int
    packs: int
    dead_bytes: int
    trash: int
    trash_bytes: int
    parity_bytes: int
    other_bytes: int
    free_bytes: int | None
    experiments: tuple[ExperimentStats, ...]
    tensors: tuple[TensorStats, ...]
    unreadable: tuple[str, ...]

    @property
    def ratio(self) -> float | None:
        """Logical bytes for each stored byte."""
        return self.logical_bytes / self.stored_bytes if self.stored_bytes else None


def gather(
    repository: Repository,
    checkpoints: Sequence[Checkpoint],
    *,
    packs_of: PacksOf | None = None,
    largest: int = 5,
) -> StoreStats:
    """The figures of a store. `packs_of` answers from the catalog; without it every manifest is read.

    Manifests that cannot be read are named in `unreadable` and left out. Raises StoreError.
    """
    unreadable: list[str] = []
    sizes = dict(packs_in(repository))
    live = _named(repository, [c.key for c in checkpoints], packs_of, unreadable)
    trash = [found.key for found in repository.manifest_keys(trash=True)]
    trashed = _named(repository, trash, None, unreadable)
    reached = _reached(repository, live)
    dead = sizes.keys() - reached
    groups: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        groups.setdefault(checkpoint.experiment, []).append(checkpoint)
    tensors: list[TensorStats] = []
    for group in groups.values():
        tensors += _tensors(repository, max(group, key=lambda c: c.order), unreadable)
    tensors.sort(key=lambda tensor: (-tensor.nbytes, tensor.experiment, tensor.path))
    return StoreStats(
        checkpoints=len(checkpoints),
        logical_bytes=sum(c.logical_bytes for c in checkpoints),
        stored_bytes=sum(sizes.values()),
        packs=len(sizes),
        dead_bytes=sum(sizes[name] for name in dead),
        trash=len(trash),
        trash_bytes=sum(sizes[name] for name in dead & _reached(repository, trashed)),
        parity_bytes=_parity(repository),
        other_bytes=_others(repository),
        free_bytes=repository.store.free_bytes(),
        experiments=tuple(_experiment(name, group, sizes) for name, group in sorted(groups.items())),
        tensors=tuple(tensors[:largest]),
        unreadable=tuple(dict.fromkeys(unreadable)),
    )


def _named(
    repository: Repository, keys: Iterable[str], packs_of: PacksOf | None, unreadable: list[str]
) -> set[str]:
    found: set[str] = set()
    for key in keys:
        try:
            if packs_of is not None:
                found.update(packs_of(key))
            else:
                found.update(pack.name for pack in repository.read(key).manifest.packs)
        except NotFoundError:  # forgotten meanwhile
            continue
        except CkptError:
            unreadable.append(key)
    return found


def _reached(repository: Repository, named: set[str]) -> set[str]:
    """With the packs that those of rewritten packs have gone to."""
    forwarded = {
        info.key.removeprefix(f"{layout.PACKS}/").removesuffix(layout.FORWARD_SUFFIX)
        for info in repository.store.list(layout.PACKS)
        if info.key.endswith(layout.FORWARD_SUFFIX)
    }
    reached, waiting = set(named), sorted(named & forwarded)
    while waiting:
        document = repository.forward(waiting.pop())
        targets = {row.pack for row in document.rows} - reached if document else set()
        reached |= targets
        waiting += sorted(targets & forwarded)
    return reached


def _experiment(name: str, group: Sequence[Checkpoint], sizes: Mapping[str, int]) -> ExperimentStats:
    folder = encode_name(name) + "/"
    own = [size for pack, size in sizes.items() if pack.startswith(folder)]
    return ExperimentStats(name, len(group), sum(c.logical_bytes for c in group), sum(own), len(own))


def _tensors(repository: Repository, checkpoint: Checkpoint, unreadable: list[str]) -> list[TensorStats]:
    try:
        manifest = repository.read(checkpoint.key).manifest
    except CkptError:
        unreadable.append(checkpoint.key)
        return []
    found: dict[int, TensorStats] = {}
    for path, (index, spec) in tensor_specs(manifest).items():
        found.setdefault(index, TensorStats(checkpoint.experiment, path, spec, dtypes.nbytes(spec)))
    return list(found.values())


def _others(repository: Repository) -> int:
    """Bytes of the documents that stand beside the packs."""
    folders = (
        layout.MANIFESTS, layout.TRASH, layout.REFERENCES, layout.METRICS, layout.SIGNATURES, layout.EXPERIMENTS,
    )  # fmt: skip
    return sum(info.size for folder in folders for info in repository.store.list(folder))


def _parity(repository: Repository) -> int:
    return sum(
        info.size for info in repository.store.list(layout.PACKS) if info.key.endswith(layout.PARITY_SUFFIX)
    )
