"""What `examine` finds half done in a store: who is at work, what the dead left behind, what waits in the trash."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_core.maintenance.findings import Finding
from ckpt_core.maintenance.wording import counted
from ckpt_core.repository import Repository

__all__ = ["at_work", "in_both_places", "trash"]


def at_work(repository: Repository) -> Iterator[Finding]:
    """The leases: those that are held, and those that nobody holds any more."""
    dead = repository.leases.left_behind()
    living = [lease for info, lease in repository.leases.living() if info.key not in dead]
    if dead:
        yield Finding(
            "note",
            "leases",
            f"{counted(len(dead), 'lease')} left behind by processes that are gone",
            "nothing: the next prune removes them",
        )
    if living:
        who = ", ".join(sorted(f"{lease.purpose} by {lease.holder}" for lease in living)[:5])
        yield Finding("ok", "leases", f"at work: {who}")
    elif not dead:
        yield Finding("ok", "leases", "nobody is at work on the store")


def in_both_places(repository: Repository) -> Iterator[Finding]:
    """Manifests that a crash in the midst of a forget or an undelete left in the trash and outside."""
    live = {found.id for found in repository.manifest_keys()}
    both = [found for found in repository.manifest_keys(trash=True) if found.id in live]
    if both:
        yield Finding(
            "note",
            "forgets",
            f"{counted(len(both), 'forget or undelete', 'forgets or undeletes')} interrupted halfway, as "
            f"{both[0].key}: the checkpoints stand",
            "nothing, or `ckpt forget` them again; `ckpt prune` clears the rest away",
        )


def trash(repository: Repository) -> Iterator[Finding]:
    """Forgotten checkpoints: those that can be brought back, and those that the next prune takes."""
    granted = repository.trash.granted()
    keys = [found.key for found in repository.manifest_keys(trash=True)]
    waiting = sum(key in granted for key in keys)
    if waiting:
        yield Finding(
            "note",
            "trash",
            f"{counted(waiting, 'forgotten checkpoint')} that can still be brought back",
            "`ckpt undelete` does so; `ckpt prune --now` reclaims their bytes",
        )
    if len(keys) > waiting:
        yield Finding(
            "note",
            "trash",
            f"{counted(len(keys) - waiting, 'forgotten checkpoint')} to be pruned",
            "`ckpt prune` reclaims their bytes",
        )
