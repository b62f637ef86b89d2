"""The sidecars of packs in a store: written, checked, found. What is in them: `format.parity`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from ckpt_core.errors import (
    CkptError,
    CorruptionError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
    UsageError,
)
from ckpt_core.format.pack import read_header
from ckpt_core.format.parity import Parity, encode, faulty_cells, read_parity, require
from ckpt_core.maintenance.census import packs_in
from ckpt_core.maintenance.chunks import damaged_chunks
from ckpt_core.repository import Repository, layout
from ckpt_core.stores import ObjectReader

__all__ = [
    "Protected",
    "carry_over",
    "check_percent",
    "check_sidecar",
    "open_parity",
    "open_sidecar",
    "protect",
    "protect_all",
    "sidecars_in",
]

_log = logging.getLogger("ckpt_core.maintenance")


@dataclass(frozen=True, slots=True)
class Protected:
    """Sidecars that were written, their bytes, and the packs that have none because they are damaged."""

    packs: int
    bytes_written: int
    damaged: tuple[str, ...]


def check_percent(percent: int) -> None:
    """Raises UsageError for what is no percentage of parity, MissingExtraError where it cannot be computed."""
    if isinstance(percent, bool) or not isinstance(percent, int) or not 0 <= percent <= 100:
        raise UsageError(f"parity={percent!r} must be a whole number of percent, 0 to 100", kind="option")
    if percent:
        require()


def sidecars_in(repository: Repository) -> Iterator[str]:
    """The name of every pack, standing or not, that has a sidecar."""
    for info in repository.store.list(layout.PACKS):
        if info.key.endswith(layout.PARITY_SUFFIX):
            stem = info.key.removeprefix(f"{layout.PACKS}/").removesuffix(layout.PARITY_SUFFIX)
            yield f"{stem}.safetensors"


def protect(repository: Repository, name: str, percent: int, *, replace: bool = False) -> int:
    """Writes the sidecar of a pack, all of which is read and checked first; returns its bytes, 0 where there
    is one (unless it is to be replaced).

    Raises CorruptionError for a damaged pack: parity over damage would keep it. MissingExtraError, StoreError.
    """
    store = repository.store
    key = layout.parity_key(name)
    if not replace and store.exists(key):
        return 0
    place = f"{layout.HEALING}/{key}" if replace else key
    if replace:
        store.delete(place)
    with store.open(layout.pack_key(name)) as reader, store.create(place) as writer:
        header = read_header(reader.read, reader.size, name)
        damaged = damaged_chunks(reader.read, header, repository.document.digest)
        if damaged:
            raise CorruptionError(
                f"pack {name} gets no parity, as it is damaged: {next(iter(damaged.values()))}; `ckpt repair` "
                "comes first",
                kind="digest",
                key=layout.pack_key(name),
            )
        written = encode(
            reader.read, reader.size, writer.write, pack=name, header=header.digest, percent=percent
        )
        try:
            writer.commit()
        except ObjectExistsError:  # another process was faster
            return 0
    if not _stayed(repository, place, name):
        store.delete(place)
        raise StoreError(f"the parity of pack {name} did not stay as it was written", kind="io", key=key)
    if replace:
        store.move(place, key)
    return written


def _stayed(repository: Repository, place: str, name: str) -> bool:
    """Whether a sidecar that was just written is sound: who needs it finds out too late."""
    with repository.store.open(place) as side:
        try:
            parity = open_parity(side, name)
        except CorruptionError:
            return False
        return parity.intact and next(faulty_cells(side.read, parity), None) is None


def protect_all(repository: Repository, percent: int, names: Iterable[str] | None = None) -> Protected:
    """Writes the sidecars that packs (or these) lack. Damaged packs are told and left out.

    Raises MissingExtraError, StoreError.
    """
    have: set[str] = set()
    if names is None:
        have = set(sidecars_in(repository))
        names = [name for name, _ in packs_in(repository)]
    packs = total = 0
    damaged = []
    for name in names:
        if name in have:
            continue
        try:
            written = protect(repository, name, percent)
        except ObjectNotFoundError:  # deleted since the listing
            continue
        except CorruptionError as error:
            _log.error("%s", error)
            damaged.append(name)
            continue
        packs, total = packs + bool(written), total + written
    return Protected(packs, total, tuple(damaged))


def carry_over(repository: Repository, name: str, target: str) -> None:
    """Gives the pack that another was rewritten to a sidecar, if that one has. Never fails: what is missing
    is written by the next save or `ckpt parity`."""
    try:
        with ExitStack() as stack:
            side = open_sidecar(repository, name, stack)
            if side is None:
                return
            percent = open_parity(side, name).document.percent
        protect(repository, target, percent)
    except CkptError as error:
        _log.warning("pack %s has no parity for now: %s", target, error)


def open_sidecar(repository: Repository, name: str, stack: ExitStack) -> ObjectReader | None:
    """The sidecar of a pack, in its place or in quarantine; None where there is none. Raises StoreError."""
    key = layout.parity_key(name)
    for place in (key, layout.quarantine_key(key)):
        with suppress(ObjectNotFoundError):
            return stack.enter_context(repository.store.open(place))
    return None


def open_parity(side: ObjectReader, name: str) -> Parity:
    """The sidecar of a pack, that was opened. Raises CorruptionError, also where it is that of another pack."""
    key = layout.parity_key(name)
    parity = read_parity(side.read, side.size, key)
    if parity.document.pack != name:
        raise CorruptionError(
            f"{key} is that of another pack: it was moved or copied", kind="parity", key=key
        )
    return parity


def check_sidecar(repository: Repository, name: str, *, read_data: bool) -> str | None:
    """What is wrong with a sidecar; None where nothing is. Raises ObjectNotFoundError, StoreError."""
    key = layout.parity_key(name)
    with repository.store.open(key) as side:
        try:
            parity = open_parity(side, name)
        except CorruptionError as error:
            return str(error)
        if not parity.intact:
            return f"{key} is damaged: one copy of its document, or its size, is not what was written"
        for offset in faulty_cells(side.read, parity) if read_data else ():
            return f"{key} is damaged: the cell of parity at {offset} is not what was written"
    with suppress(ObjectNotFoundError):
        size = repository.store.info(layout.pack_key(name)).size
        if size != parity.document.size:
            return f"{key} is of a pack of {parity.document.size} bytes; the one beside it has {size}"
    return None
