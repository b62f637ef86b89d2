"""What must hold when an operation has been interrupted: looked at by another process, which then goes on working."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_core import CheckpointManager, CkptError
from ckpt_core.maintenance.deletion import execute_prune
from ckpt_core.maintenance.doctor import examine
from ckpt_core.maintenance.prune import plan_prune
from contract.store_case import load
from crash.operations import EXPERIMENT, Operation, opened, same, state_of

__all__ = ["Promises", "Verdict", "examine_after"]

NEXT = 200
"""The step of the save that follows."""


@dataclass
class Promises:
    """What was acknowledged, before the operation and by its lines."""

    steps: dict[str, int]
    """Id -> step of each checkpoint whose result somebody has."""
    audited: int = 0
    """Entries of the audit trail."""
    gone: set[int] = field(default_factory=set)
    tags: dict[str, int] = field(default_factory=dict)

    def hear(self, lines: list[list[str]]) -> None:
        for word, *rest in lines:
            if word == "ack":
                self.steps[rest[1]] = int(rest[0])
            elif word == "gone":
                self.gone.add(int(rest[0]))
            elif word == "back":
                self.gone.discard(int(rest[0]))
            elif word == "tag":
                self.tags[rest[0]] = int(rest[1])


@dataclass
class Verdict:
    """What is wrong, in words."""

    lost: list[str] = field(default_factory=list)
    """Acknowledged, and not there."""
    torn: list[str] = field(default_factory=list)
    """Visible, and not whole."""
    stuck: list[str] = field(default_factory=list)
    """What the next command could not do without help."""

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception:
            self.stuck.append(f"{what}: {traceback.format_exc()}")

    @property
    def ok(self) -> bool:
        return not (self.lost or self.torn or self.stuck)


def examine_after(folder: Path, operation: Operation, promised: Promises, *, full: bool = False) -> Verdict:
    """Opens the store as the next process does, compares it with what was promised, and goes on. On a disk that was
    `full` there may have been no room to note that what is forgotten can be brought back."""
    verdict = Verdict()
    with verdict.doing("open"), opened(folder) as manager:
        if operation.damaged:
            with verdict.doing("repair"):
                assert manager.workspace.repair(mirror=folder / "mirror").ok
        with verdict.doing("look"):
            _look(manager, operation, promised, verdict)
            back = {checkpoint.step for checkpoint in manager.forgotten()}
            if not full and not promised.gone <= back:
                verdict.lost.append(f"the way back of steps {sorted(promised.gone - back)}")
        with verdict.doing("go on"):
            _go_on(manager, folder / "store")
    left = [str(path.relative_to(folder)) for path in _passing(folder / "store")]
    if left:
        verdict.stuck.append(f"left behind: {', '.join(left)}")
    return verdict


def _look(manager: CheckpointManager, operation: Operation, promised: Promises, verdict: Verdict) -> None:
    there = {c.id: c for c in manager.checkpoints()}
    for identity, step in promised.steps.items():
        if identity not in there and step not in operation.may_go:
            verdict.lost.append(f"step {step} ({identity})")
    repository = manager.workspace.repository
    for checkpoint in there.values():
        if checkpoint.step in promised.gone:
            verdict.lost.append(f"the forgetting of step {checkpoint.step}")
        try:
            if not same(load(repository, checkpoint.key), checkpoint.step):
                verdict.torn.append(f"step {checkpoint.step} is not what was saved")
        except CkptError as error:
            verdict.torn.append(f"step {checkpoint.step}: {error}")
    if there:
        newest = max(there.values(), key=lambda checkpoint: checkpoint.order)
        assert same(manager.load("latest", fallback=False), newest.step)
    tags = manager.workspace.references.of_experiment(EXPERIMENT)[0]
    for tag, step in promised.tags.items():
        found = there.get(tags.get(tag, ""))
        if (found.step if found else 0) != step:
            verdict.lost.append(f"the tag {tag} at step {step}: it is at {tags.get(tag)}")
    catalog = manager.workspace.index.catalog()
    assert catalog.ids(EXPERIMENT) == there.keys(), "the catalog is not in line"
    assert catalog.verify_audit() is None, "the audit trail is broken"
    if len(catalog.audit_log()) < promised.audited:
        verdict.lost.append(f"{promised.audited - len(catalog.audit_log())} entries of the audit trail")


def _go_on(manager: CheckpointManager, root: Path) -> None:
    """The commands that may come next; at the end all is sound, and nothing is left that nobody needs."""
    workspace = manager.workspace
    repository = workspace.repository
    manager.save(state_of(NEXT), step=NEXT, tags=["next"], wait=True)
    oldest = manager.checkpoints()[0]
    if oldest.step != NEXT:
        manager.forget(oldest.id, grace=0)
    _grow_old(root)
    # What killed saves left behind is mostly kept for a day: here nobody waits for it.
    manager.prune(plan_prune(repository, orphan_seconds=-1, now=True))
    execute_prune(repository, plan_prune(repository, orphan_seconds=-1, now=True))
    assert plan_prune(repository, orphan_seconds=-1, now=True).empty
    report = manager.verify()
    assert report.ok, report.problems
    assert same(manager.load("next"), NEXT)
    found = examine(repository, workspace.references, workspace.index.catalog)
    wrong = [f"{each.check}: {each.message}" for each in found if each.level in ("error", "warning")]
    assert not wrong, wrong


def _passing(root: Path) -> Iterator[Path]:
    """Files that are there only while somebody is at work."""
    for path in root.rglob("*"):
        if path.name.startswith(".") or path.parent.name == "leases":
            yield path


def _grow_old(root: Path) -> None:
    """What was left half written was so two days ago."""
    for path in _passing(root):
        if path.name.startswith("."):
            os.utime(path, (time.time() - 172_800,) * 2)
