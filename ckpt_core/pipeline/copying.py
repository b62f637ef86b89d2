"""Checkpoints from one store to another, with all that belongs to them: only what is missing travels.

A mirror is a store's second self, which follows it in all (`mirror`); here two stores stay what they are.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ckpt_core.errors import CkptError, NotFoundError, ObjectNotFoundError, StoreError, UsageError
from ckpt_core.format.documents import AttemptStart, MetricSegment
from ckpt_core.format.sealed import unseal
from ckpt_core.model import Checkpoint
from ckpt_core.pipeline.resolve import Mode
from ckpt_core.pipeline.trust import Readable, trusted_manifest
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.repository import layout
from ckpt_core.repository.transfer import chunks_of, reading, transfer
from ckpt_core.repository.writer import Known
from ckpt_core.stores import Store

__all__ = ["Copied", "chosen", "copy_between", "copy_checkpoints", "open_target"]

_log = logging.getLogger("ckpt_core.copy")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Copied:
    """What travelled. `there` are checkpoints that the target had; `failed` those that the source cannot give,
    `kept` tags that the target has on another checkpoint, and keeps there; `left` what else the source cannot give,
    pieces of metric series and what is known of attempts: the key of each, and why."""

    checkpoints: tuple[Checkpoint, ...]
    there: int
    nbytes: int
    marks: int
    segments: int
    failed: tuple[tuple[str, str], ...]
    kept: tuple[str, ...]
    left: tuple[tuple[str, str], ...]


def copy_checkpoints(
    source: str | os.PathLike[str] | Store,
    target: str | os.PathLike[str] | Store,
    *refs: str,
    experiment: str | None = None,
    progress: Progress | None = None,
) -> Copied:
    """Copies checkpoints between two stores: those that references name, those of an `experiment`, or all.

    They keep their ids, steps, metrics, tags, pins and metric series; what their attempts told and the tags of their
    experiments come along. What the target has does not travel, so a copy that was interrupted goes on where it was.
    A target that is not there is made as the source was; one with another `chunk_bytes` or `digest` gets its own
    chunks. Every byte is checked as it is read. Checkpoints that are damaged, or of which something cannot be read,
    are left out, and told; so are pieces of metric series, and what attempts told. Raises NotFoundError, UsageError
    (the two are one store), StoreError.
    """
    origin = Workspace.open(source)
    try:
        there = open_target(origin, target)
        try:
            return copy_between(origin, there, chosen(origin, refs, experiment), progress=progress)
        finally:
            there.close()
    finally:
        origin.close()


def open_target(origin: Workspace, target: str | os.PathLike[str] | Store) -> Workspace:
    """The store to copy to; made as `origin` was where there is none. Raises UsageError where it is the same."""
    made = origin.repository.document
    try:
        there = Workspace.open(target)
    except NotFoundError:
        there = Workspace.open(target, create=True, chunk_bytes=made.chunk_bytes, digest=made.digest)
    if there.repository.document.store_id == made.store_id:
        there.close()
        raise UsageError(
            f"{there.repository.store.url} is the same store as {origin.repository.store.url}, or a copy of its folder "
            "or its mirror: `ckpt mirror sync` brings a mirror in line",
            kind="same",
        )
    return there


def chosen(
    origin: Workspace,
    refs: Sequence[str],
    experiment: str | None = None,
    *,
    metric: str | None = None,
    mode: Mode = "min",
) -> list[Checkpoint]:
    """The checkpoints that references mean, or all (of an experiment), the oldest first. Raises NotFoundError."""
    if not refs:
        found = origin.index.checkpoints(experiment)
        if not found and experiment is not None:
            raise NotFoundError(f"there is no experiment {experiment!r}; `ckpt experiments` lists them")
        return sorted(found, key=lambda checkpoint: (checkpoint.experiment, *checkpoint.order))
    readable = Readable(origin)
    named = [next(readable.candidates(ref, experiment=experiment, metric=metric, mode=mode)) for ref in refs]
    return sorted({each.id: each for each in named}.values(), key=lambda each: (each.experiment, *each.order))


def copy_between(
    origin: Workspace, there: Workspace, wanted: Sequence[Checkpoint], *, progress: Progress | None = None
) -> Copied:
    """Copies these checkpoints of one open store to another. See `copy_checkpoints`."""
    standing = {found.id for found in there.repository.manifest_keys()}
    missing = [checkpoint for checkpoint in wanted if checkpoint.id not in standing]
    total, done = sum(checkpoint.logical_bytes for checkpoint in missing), 0
    copied: list[Checkpoint] = []
    failed: list[tuple[str, str]] = []

    def advance(nbytes: int) -> None:
        nonlocal done
        done = min(done + nbytes, total)  # what another process disturbs is done twice
        if progress is not None:
            progress(done, total)

    known: dict[str, Known] = {}
    experiment = None
    for checkpoint in missing:
        if checkpoint.experiment != experiment:
            experiment, known = checkpoint.experiment, _known(there, checkpoint.experiment)
        try:
            copied.append(_copy(origin, there, checkpoint, known, advance))
        except CkptError as error:
            if isinstance(error, StoreError) and not isinstance(error, FileNotFoundError):
                raise  # one of the two stores is full or out of reach: so it is for all others
            _log.error("checkpoint %s (step %d) is not copied: %s", checkpoint.id, checkpoint.step, error)
            failed.append((checkpoint.id, str(error)))
    standing |= {checkpoint.id for checkpoint in copied}
    present = [checkpoint for checkpoint in wanted if checkpoint.id in standing]
    marks, kept = _copy_marks(origin, there, present)
    lineages: dict[str, set[str]] = {}
    for each in present:
        lineages.setdefault(each.experiment, set()).add(each.attempt.lineage)
    left: list[tuple[str, str]] = []
    segments = _copy_series(origin, there, lineages, left)
    _copy_records(origin, there, lineages, left)
    for name in sorted({checkpoint.experiment for checkpoint in present}):
        there.index.synchronise(name)
    nbytes = sum(checkpoint.written_bytes for checkpoint in copied)
    facts = {"source": origin.repository.store.url, "checkpoints": len(copied), "failed": len(failed)}
    facts |= {"left": len(left)} if left else {}
    there.audit("copy", there.repository.store.url, "partly" if failed or left else "done", **facts)
    had = len(wanted) - len(missing)
    return Copied(tuple(copied), had, nbytes, marks, segments, tuple(failed), tuple(kept), tuple(left))


def _copy(
    origin: Workspace,
    there: Workspace,
    checkpoint: Checkpoint,
    known: dict[str, Known],
    advance: Callable[[int], object],
) -> Checkpoint:
    with reading(origin.repository):
        manifest = trusted_manifest(origin.repository, checkpoint)
    committed = transfer(origin.repository, manifest, there.repository, known, advance)
    known |= chunks_of(committed.manifest)
    made = committed.checkpoint()
    there.index.tell(lambda catalog: catalog.put_checkpoint(made, committed.packs))
    if there.mirror is not None:
        there.mirror.follow(committed)
    return made


def _known(there: Workspace, experiment: str) -> dict[str, Known]:
    """The chunks of an experiment's checkpoints that the target has."""
    known: dict[str, Known] = {}
    for found in there.repository.manifest_keys(experiment):
        try:
            known |= chunks_of(there.repository.read(found.key).manifest)
        except CkptError as error:
            _log.warning("what it has written is not used: %s", error)
    return known


def _copy_marks(origin: Workspace, there: Workspace, present: Iterable[Checkpoint]) -> tuple[int, list[str]]:
    """Tags and pins of checkpoints that are there now; returns how many, and the tags that stay where they are."""
    ids = {checkpoint.id for checkpoint in present}
    count, kept = 0, []
    for name in sorted({checkpoint.experiment for checkpoint in present}):
        tags, pins = origin.references.of_experiment(name)
        had_tags, had_pins = there.references.of_experiment(name)
        for tag, target in sorted(tags.items()):
            if target not in ids or had_tags.get(tag) == target:
                continue
            if tag in had_tags:
                kept.append(f"{name}@{tag}")
                continue
            there.references.set_tag(name, tag, target)
            count += 1
        for target in sorted((pins & ids) - had_pins):
            there.references.pin(name, target)
            count += 1
    there.marked += count
    return count, kept


def _copy_series(
    origin: Workspace, there: Workspace, lineages: Mapping[str, set[str]], left: list[tuple[str, str]]
) -> int:
    """The metric series of these lineages of each experiment; returns how many segments."""
    count = 0
    for name, own in lineages.items():
        for key in origin.segments.keys(name):
            if there.repository.store.exists(key):
                continue
            wanted = None
            with _spared(origin, key, left):
                data = origin.repository.store.get(key, limit=layout.DOCUMENT_LIMIT)
                if unseal(data, MetricSegment, key).attempt.lineage in own:
                    wanted = data
            if wanted is not None:
                _put(there, key, wanted)
                count += 1
    return count


def _copy_records(
    origin: Workspace, there: Workspace, lineages: Mapping[str, set[str]], left: list[tuple[str, str]]
) -> None:
    """What attempts of these lineages told (configuration, environment, how they ended), and tags of experiments."""
    for name, own in lineages.items():
        attempts: set[str] = set()
        places = [(layout.parse_attempt_key(key), key) for key in origin.experiments.keys(name)]
        # The beginnings first: they tell whose the words are.
        for place, key in sorted(places, key=lambda found: found[0] is None or found[0].word is not None):
            missing, wanted = not there.repository.store.exists(key), None
            with _spared(origin, key, left):
                if place is not None and place.word is None:
                    begun = origin.experiments.read(key)
                    if isinstance(begun, AttemptStart) and begun.attempt.lineage in own:
                        attempts.add(place.id)
                if missing and (place is None or place.id in attempts):
                    data = origin.repository.store.get(key, limit=layout.DOCUMENT_LIMIT)
                    unseal(data, dict, key, newest=1 << 30)
                    wanted = data
            if wanted is not None:
                _put(there, key, wanted)


@contextmanager
def _spared(origin: Workspace, key: str, left: list[tuple[str, str]]) -> Iterator[None]:
    """Goes on where a document of the source is damaged or cannot be read, which is noted in `left`, or is removed
    meanwhile."""
    try:
        with reading(origin.repository):
            yield
    except ObjectNotFoundError:
        pass
    except StoreError:
        raise
    except CkptError as error:
        _log.warning("%s is not copied: %s", key, error)
        left.append((key, str(error)))


def _put(there: Workspace, key: str, data: bytes) -> None:
    there.repository.store.put(key, data)
    if there.mirror is not None:
        there.mirror.note(key)
