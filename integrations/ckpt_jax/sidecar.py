"""Digests of the files below a folder that somebody else writes, in one small sealed file beside them.

Knows no Orbax: what is a checkpoint, and when it is complete, is for others to say.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from etils import epath

from ckpt_core import CorruptionError, FormatError

__all__ = ["NAME", "Sidecar", "digest_of", "files_below", "seal", "unseal", "verify"]

_log = logging.getLogger("ckpt_core.orbax")

NAME = "ckpt_core.digests.json"
"""The file in each folder. Orbax passes over it, as over every name that it does not know."""

_FORMAT = 1
_LONGEST = 256 << 20
_BLOCK = 1 << 20
_THREADS = max(1, min(8, os.cpu_count() or 1))
Facts = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Size and SHA-256 of each file, by its path below the folder; `digest` is that of the document."""

    files: Mapping[str, Facts]
    digest: str

    @property
    def nbytes(self) -> int:
        """Bytes of all files together."""
        return sum(size for size, _ in self.files.values())


def digest_of(path: epath.Path) -> Facts:
    """Size and SHA-256 of a file, read block by block."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def seal(folder: epath.Path, *, but: Collection[str] = ()) -> Sidecar:
    """Reads every file below `folder`, but for those that are still to change, and writes the sidecar.

    Durable, on a local disk, when it returns.
    """
    names = sorted(name for name in files_below(folder) if name != NAME and name not in but)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ckpt-digest") as pool:
        facts = list(pool.map(lambda name: digest_of(folder / name), names))
    files = dict(zip(names, facts, strict=True))
    sealed = _sealed({"format": _FORMAT, "algorithm": "sha256", "files": files})
    with (folder / NAME).open("wb") as file:
        file.write(_canonical(sealed))
        file.flush()
        if isinstance(folder, os.PathLike) and os.path.exists(os.fspath(folder)):
            os.fsync(file.fileno())
    return Sidecar(files, sealed["sha256"])


def unseal(folder: epath.Path) -> Sidecar | None:
    """The sidecar of a folder; None where it has none. Raises CorruptionError, FormatError."""
    path = folder / NAME
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST)
    except FileNotFoundError:
        return None
    try:
        document = json.loads(data)
        intact = _canonical(_sealed({k: v for k, v in document.items() if k != "sha256"})) == data
    except (ValueError, AttributeError):
        intact = False
    if not intact:
        raise CorruptionError(
            f"{path} is not what was written: the files beside it cannot be checked; restore another step",
            kind="document",
            path=str(path),
        )
    if document["format"] != _FORMAT:
        raise FormatError(f"{path} is of a newer format: upgrade ckpt-core", path=str(path))
    files = {name: (int(size), str(digest)) for name, (size, digest) in document["files"].items()}
    return Sidecar(files, document["sha256"])


def verify(folder: epath.Path, files: Mapping[str, Facts]) -> None:
    """Reads every one of `files` again. Raises CorruptionError for the first that is not what it was."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ckpt-digest") as pool:
        jobs = {name: pool.submit(_check, folder / name, facts) for name, facts in files.items()}
        try:
            for job in jobs.values():
                job.result()
        finally:
            for job in jobs.values():
                job.cancel()


def _check(path: epath.Path, facts: Facts) -> None:
    try:
        found = digest_of(path)
    except FileNotFoundError:
        what, kind = f"{path} is missing", "missing"
    else:
        if found == facts:
            return
        what, kind = f"{path} is not what was written", "digest"
        if found[0] != facts[0]:
            what, kind = f"{path} has {found[0]} bytes, and was written with {facts[0]}", "truncated"
    raise CorruptionError(f"{what}: restore another step", kind=kind, path=str(path), digest=facts[1])


def files_below(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    """The path of every file below a folder, from there."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from files_below(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}"


def _sealed(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "sha256": hashlib.sha256(_canonical(document)).hexdigest()}


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"
