"""A scrub: a full verification in portions, at a bounded pace, of what was not checked for longest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event

from ckpt_core import clock
from ckpt_core.maintenance.census import packs_in
from ckpt_core.maintenance.integrity import IntegrityTracker
from ckpt_core.maintenance.verify import CheckpointVerifier, Problem, Progress
from ckpt_core.repository import Repository

__all__ = ["ScrubReport", "portion", "scrub"]


@dataclass(frozen=True, slots=True)
class ScrubReport:
    """What a scrub read and found; `left` packs wait for the next one."""

    packs: int
    bytes_read: int
    left: int
    problems: tuple[Problem, ...]
    damaged: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems


def portion(repository: Repository, tracker: IntegrityTracker, share: float) -> set[str]:
    """Packs that make `share` (0 to 1) of the bytes of all, and were not read for longest."""
    sizes = dict(packs_in(repository))
    wanted, chosen = share * sum(sizes.values()), set()
    for name in tracker.oldest_first(sizes):
        if wanted <= 0:
            break
        chosen.add(name)
        wanted -= sizes[name]
    return chosen


def scrub(
    repository: Repository,
    tracker: IntegrityTracker,
    *,
    rate: int | None = None,
    limit: int | None = None,
    seconds: float | None = None,
    progress: Progress | None = None,
    pause: Callable[[float], object] | None = None,
) -> ScrubReport:
    """Reads packs, those not read for longest first, and all documents and headers at the end.

    At most `rate` bytes a second on average, `limit` bytes, `seconds`; a pack that is begun is read to its end, and
    remembered then, so an interrupted scrub is gone on with by the next. `pause` waits. Damage is reported, not
    raised. Raises StoreError where the store cannot be listed.
    """
    begun, wait = clock.monotonic(), pause if pause is not None else Event().wait
    verifier = CheckpointVerifier(repository)
    sizes = dict(packs_in(repository))
    total = min(sum(sizes.values()), limit if limit is not None else 1 << 62)
    done = 0
    read: list[str] = []
    suspects: set[str] = set()

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(min(done, total), total)
        ahead = 0.0 if rate is None else done / rate - (clock.monotonic() - begun)
        if ahead > 0:
            wait(ahead)

    for name in tracker.oldest_first(sizes):
        passed = clock.monotonic() - begun
        if (limit is not None and done >= limit) or (seconds is not None and passed >= seconds):
            break
        before = done
        sound = verifier.check_pack(name, advance)
        if sound is None:  # deleted since the listing
            continue
        tracker.record(name, "ok" if sound else "damaged", sizes[name])
        read.append(name)
        done = before + sizes[name]
        if not sound:
            suspects.add(name)
    report = verifier.verify(
        packs=suspects
    )  # whom the damage hurts; and the documents, which are quick to read
    return ScrubReport(
        packs=len(read),
        bytes_read=done,
        left=len(sizes) - len(read),
        problems=report.problems,
        damaged=report.damaged,
    )
