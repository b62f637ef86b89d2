"""An examination of a store: what is wrong or unusual with it, and what to do about each finding.

Looks at names, sizes, ages and documents; whether the data itself is intact is for verify to say. It
changes nothing in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from ckpt_core import clock
from ckpt_core.errors import CkptError, FormatError, MissingExtraError, NotFoundError
from ckpt_core.format.compression import require
from ckpt_core.format.documents import ForwardRow, Manifest
from ckpt_core.format.sealed import COMPRESSED_FORMAT
from ckpt_core.maintenance import halfway, surroundings
from ckpt_core.maintenance.census import packs_in
from ckpt_core.maintenance.findings import Finding
from ckpt_core.maintenance.hooked import left_out
from ckpt_core.maintenance.prune import ORPHAN_SECONDS
from ckpt_core.maintenance.wording import counted, size
from ckpt_core.repository import References, Repository, layout

if TYPE_CHECKING:
    from ckpt_core.catalog import Catalog
    from ckpt_core.maintenance.mirroring import MirrorStatus

__all__ = ["examine"]

_VERIFY_DAYS = 30


def examine(
    repository: Repository,
    references: References,
    open_catalog: Callable[[], Catalog],
    mirror: Callable[[], MirrorStatus] | None = None,
) -> list[Finding]:
    """Every check, in a fixed order; a check that itself fails is a finding. `mirror` compares it with the store."""
    found: list[Finding] = []
    manifests = _Manifests(repository)
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("store", lambda: _store(repository)),
        ("permissions", lambda: surroundings.permissions(repository)),
        ("file-system", lambda: surroundings.file_system(repository)),
        ("clock", lambda: surroundings.clocks(repository)),
        ("manifests", lambda: _unreadable(manifests)),
        ("compression", lambda: _compressed(manifests)),
        ("packs", lambda: _packs(repository, manifests)),
        ("space", lambda: _space(repository, manifests)),
        ("references", lambda: _references(references, manifests)),
        ("catalog", lambda: _catalog(manifests, open_catalog)),
        ("temporaries", lambda: surroundings.temporaries(repository)),
        ("leases", lambda: halfway.at_work(repository)),
        ("forgets", lambda: halfway.in_both_places(repository)),
        ("trash", lambda: halfway.trash(repository)),
        ("mirror", lambda: _mirror(mirror)),
        ("quarantine", lambda: _quarantine(repository)),
        ("strangers", lambda: surroundings.strangers(repository)),
        ("hooks", lambda: left_out(open_catalog)),
        ("verified", lambda: _verified(manifests, open_catalog)),
        ("versions", surroundings.versions),
    )
    for check, work in checks:
        try:
            found.extend(work())
        except CkptError as error:
            found.append(Finding("error", check, f"this check failed: {error}", "see what the message says"))
    return found


class _Manifests:
    """Every live manifest, read once, and those that cannot be read."""

    def __init__(self, repository: Repository) -> None:
        self.readable: dict[str, Manifest] = {}
        self.unreadable: dict[str, CkptError] = {}
        self.ids: set[str] = set()
        self.trashed = {found.id for found in repository.manifest_keys(trash=True)}
        for found in repository.manifest_keys():
            try:
                self.readable[found.key] = repository.read(found.key).manifest
            except NotFoundError:  # forgotten since the listing
                continue
            except CkptError as error:
                self.unreadable[found.key] = error
            self.ids.add(found.id)


def _store(repository: Repository) -> Iterator[Finding]:
    document = repository.document
    yield Finding(
        "ok", "store", f"format {document.format}, id {document.store_id}, made {document.created_at}"
    )


def _unreadable(manifests: _Manifests) -> Iterator[Finding]:
    for key, error in manifests.unreadable.items():
        yield Finding(
            "error", "manifests", f"{key}: {error}", "restore that file from a backup, or `ckpt forget` it"
        )
    if not manifests.unreadable:
        yield Finding(
            "ok", "manifests", f"{counted(len(manifests.readable), 'checkpoint')}, every manifest intact"
        )


def _compressed(manifests: _Manifests) -> Iterator[Finding]:
    count = sum(manifest.format == COMPRESSED_FORMAT for manifest in manifests.readable.values())
    try:
        require()
    except MissingExtraError as error:
        if count:
            message = f"{counted(count, 'checkpoint')} cannot be loaded here: {error}"
            yield Finding("error", "compression", message, "install what it names")
        return
    if count:
        yield Finding("ok", "compression", f"{counted(count, 'checkpoint')} with compressed chunks")


def _packs(repository: Repository, manifests: _Manifests) -> Iterator[Finding]:
    sizes = dict(packs_in(repository))
    forwarded = {
        info.key.removeprefix(f"{layout.PACKS}/").removesuffix(layout.FORWARD_SUFFIX)
        for info in repository.store.list(layout.PACKS)
        if info.key.endswith(layout.FORWARD_SUFFIX)
    }
    named = {pack.name: pack.size for manifest in manifests.readable.values() for pack in manifest.packs}
    out = {info.key.removeprefix(f"{layout.WITHDRAWN}/") for info in repository.store.list(layout.WITHDRAWN)}
    missing = sorted(
        name for name in named if name not in sizes and name not in forwarded and name not in out
    )
    resized = sorted(name for name, size in named.items() if sizes.get(name, size) != size)
    for names, what in ((missing, "missing"), (resized, "not of the size they had")):
        if names:
            yield Finding(
                "error",
                "packs",
                f"{counted(len(names), 'pack')} {what}, as {names[0]}",
                "`ckpt verify` lists what it hurts; restore the files from a backup",
            )
    targets = {row.pack for name in forwarded for row in _forward_rows(repository, name)}
    claims = repository.leases.claims()
    orphans = {name for name in sizes.keys() - named.keys() - targets if name not in claims}
    owned = {name for name in orphans if name.rpartition("/")[2][:26] in manifests.trashed}
    limit = surroundings.store_time(repository) - ORPHAN_SECONDS
    old = [name for name in orphans - owned if repository.store.info(layout.pack_key(name)).modified <= limit]
    if old and not manifests.unreadable:
        yield Finding(
            "warning",
            "packs",
            f"{counted(len(old), 'pack')} ({size(sum(sizes[name] for name in old))}) of "
            "no checkpoint: saves that were interrupted left them",
            "`ckpt prune` removes them",
        )
    if out:
        yield Finding(
            "warning",
            "packs",
            f"{counted(len(out), 'pack')} taken out by a prune that was interrupted",
            "`ckpt prune` puts back what is needed and removes the rest",
        )
    if not (missing or resized or old or out):
        yield Finding(
            "ok",
            "packs",
            f"{counted(len(sizes), 'pack')}, {size(sum(sizes.values()))}, all that are named are there",
        )


def _forward_rows(repository: Repository, name: str) -> Iterator[ForwardRow]:
    with suppress(CkptError):  # verify tells of damaged forwardings
        document = repository.forward(name)
        yield from document.rows if document else ()


def _space(repository: Repository, manifests: _Manifests) -> Iterator[Finding]:
    free = repository.store.free_bytes()
    if free is None:
        return
    need = max((manifest.logical_bytes for manifest in manifests.readable.values()), default=0)
    message = f"{size(free)} free; the largest checkpoint has {size(need)}"
    if free < need:
        yield Finding(
            "error", "space", message, "free some space, or `ckpt forget` and `ckpt prune` old checkpoints"
        )
    elif free < 3 * need:
        yield Finding(
            "warning", "space", message, "few more saves fit: `ckpt forget` and `ckpt prune` old checkpoints"
        )
    else:
        yield Finding("ok", "space", message)


def _references(references: References, manifests: _Manifests) -> Iterator[Finding]:
    dangling, count = [], 0
    keys = references.keys()
    for key in keys:
        try:
            reference = references.read(key)
        except CkptError as error:
            yield Finding(
                "error", "references", f"{key}: {error}", "delete that file and set the tag or pin again"
            )
            continue
        count += 1
        if reference.checkpoint not in manifests.ids:
            dangling.append(f"{reference.experiment}@{reference.name}")
    if dangling:
        yield Finding(
            "warning",
            "references",
            f"{counted(len(dangling), 'tag or pin', 'tags or pins')} of checkpoints that are gone: "
            f"{', '.join(dangling[:5])}",
            "`ckpt prune` removes them",
        )
    else:
        yield Finding("ok", "references", f"{counted(count, 'tag or pin', 'tags and pins')}, none dangling")


def _catalog(manifests: _Manifests, open_catalog: Callable[[], Catalog]) -> Iterator[Finding]:
    try:
        catalog = open_catalog()
        catalog.check()
        known = catalog.ids()
        broken = catalog.verify_audit()
    except FormatError as error:  # of a newer version
        yield Finding("error", "catalog", str(error), "nothing: saves and loads do without it until then")
        return
    except CkptError as error:
        yield Finding("error", "catalog", str(error), "`ckpt reindex` rebuilds the catalog from the store")
        return
    missing, extra = manifests.ids - known, known - manifests.ids
    if missing or extra:
        yield Finding(
            "note",
            "catalog",
            f"it lacks {counted(len(missing), 'checkpoint')} and has {len(extra)} that are gone",
            "nothing: the next command brings it in line (`ckpt reindex` builds it anew)",
        )
    if broken is not None:
        yield Finding(
            "warning",
            "catalog",
            f"its audit trail is not as it was written, from entry {broken} on",
            "find out who changed the database; checkpoints are not touched by it",
        )
    if not (missing or extra or broken is not None):
        message = f"{counted(len(known), 'checkpoint')}, as in the store; {catalog.database}"
        yield Finding(
            "ok", "catalog", message if catalog.url.startswith("sqlite") else f"{message} at {catalog.url}"
        )


def _mirror(compare: Callable[[], MirrorStatus] | None) -> Iterator[Finding]:
    if compare is None:
        return
    try:
        status = compare()
    except CkptError as error:
        advice = "bring it back, or `ckpt mirror off`; saves make up for what it misses"
        yield Finding("warning", "mirror", f"it is out of reach: {error}", advice)
        return
    if status.behind:
        yield Finding(
            "warning",
            "mirror",
            f"{status.url} lacks {counted(len(status.checkpoints), 'checkpoint')} and "
            f"{counted(len(status.packs), 'pack')}, and has {len(status.forgotten)} that were forgotten",
            "the next save brings it in line, or `ckpt mirror sync`",
        )
    if status.alone:
        yield Finding(
            "warning",
            "mirror",
            f"{counted(len(status.alone), 'checkpoint')} stand on {status.url} alone",
            "`ckpt repair` brings them back, `ckpt mirror sync --delete` forgets them there",
        )
    if not status.behind and not status.alone:
        yield Finding("ok", "mirror", f"{status.url}, in line by names and sizes")


def _quarantine(repository: Repository) -> Iterator[Finding]:
    waiting = [found.id for found in repository.manifest_keys(quarantine=True)]
    objects = [info.key for info in repository.store.list(layout.QUARANTINE)]
    left = [key for key in objects if key.startswith(f"{layout.HEALING}/")]
    if len(objects) > len(left):
        yield Finding(
            "warning",
            "quarantine",
            f"{counted(len(objects) - len(left), 'object')} could not be healed, "
            f"{counted(len(waiting), 'checkpoint')} of them",
            "`ckpt repair --mirror PATH` heals from a copy of the store; `ckpt repair --discard` gives them up",
        )
    if left:
        yield Finding(
            "warning",
            "quarantine",
            f"a repair was interrupted and left {counted(len(left), 'file')}",
            "`ckpt repair` removes them, and makes the repair again",
        )


def _verified(manifests: _Manifests, open_catalog: Callable[[], Catalog]) -> Iterator[Finding]:
    if not manifests.ids:
        return
    try:
        checks = [check for check in open_catalog().checks(limit=1000) if check.kind == "full"]
    except CkptError:  # told by the check of the catalog
        return
    advice = "`ckpt verify` reads and checks every byte"
    whole = next((check for check in checks if check.checkpoint is None), None)
    if whole is None:
        yield Finding("note", "verified", "the whole store was never verified", advice)
    elif whole.outcome != "ok":
        message = f"the last verification, on {clock.to_text(whole.at)}, found damage"
        yield Finding("error", "verified", message, "`ckpt verify` lists what it hurts")
    elif (clock.now() - whole.at).days > _VERIFY_DAYS:
        yield Finding("note", "verified", f"last verified {(clock.now() - whole.at).days} days ago", advice)
    else:
        yield Finding("ok", "verified", f"last verified on {clock.to_text(whole.at)}, no damage")
