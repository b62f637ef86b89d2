"""What the crash matrix interrupts: each operation with the store that it begins with.

An operation tells what it has been promised, a line each: `ack STEP ID` for a checkpoint whose result it has,
`gone STEP` for one that it has forgotten, `back STEP`, `tag NAME STEP` (0: it is on none).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_core import CheckpointManager, KeepLast
from ckpt_core.catalog import backups
from ckpt_core.catalog.engine import Database
from ckpt_core.maintenance import prune as prune_module
from ckpt_core.stores import LocalStore
from contract.store_case import new_repository

__all__ = ["CARELESS", "EXPERIMENT", "OPERATIONS", "Operation", "eager", "opened", "same", "state_of"]

EXPERIMENT = "matrix"
CHUNK = 4096
CHUNKS = 12
LARGE = 1 << 19
"""Bytes of a tensor that is written past the page cache."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Operation:
    """`act` is what is interrupted; `prepare` makes the folder that it begins with: the store in `store`, and what
    else it needs beside. `saves`: a fault of the catalog alone must not show."""

    act: Callable[[CheckpointManager, Path, Say], None]
    prepare: Callable[[Path], None]
    least: int
    """The calls that change files are at least so many: fewer were not seen, rather than not made."""
    options: dict[str, Any] = field(default_factory=dict)
    may_go: frozenset[int] = frozenset()
    """Steps that it may take away."""
    saves: bool = False
    damaged: bool = False
    """The store that it begins with needs a repair, with the mirror beside it."""


def state_of(step: int, size: int = 0) -> dict[str, Any]:
    """Twelve chunks, of which each step leaves some as they were; `size`: more bytes that are its own."""
    values = np.array([1000 * i + step - step % (i % 5 + 1) for i in range(CHUNKS)], np.int64)
    state: dict[str, Any] = {"w": np.repeat(values, CHUNK // 8), "own": np.full(40, step), "step": step}
    if size:
        state["large"] = np.random.default_rng(step).integers(0, 255, size, np.uint8)
    return state


def same(found: Any, step: int) -> bool:
    """Whether this is the state of a step, to the last bit."""
    expected = state_of(step, found["large"].size if "large" in found else 0)
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name], expected[name]) for name in expected
    )


def eager() -> None:
    """Packs of a few kilobytes are worth a rewrite."""
    prune_module._REWRITE_AT_LEAST = CHUNK


@contextmanager
def opened(folder: Path, **options: Any) -> Iterator[CheckpointManager]:
    with CheckpointManager(folder / "store", experiment=EXPERIMENT, metric="loss", **options) as manager:
        yield manager


# -- the stores that they begin with --------------------------------------------------------------


def nothing(folder: Path) -> None:
    folder.mkdir()


def three(folder: Path, **options: Any) -> None:
    """Checkpoints of steps 1 to 3, each tagged, the third pinned."""
    folder.mkdir()
    new_repository(LocalStore(folder / "store"), CHUNK)
    with opened(folder, **options) as manager:
        for step in (1, 2, 3):
            manager.log({"train": step}, step=step)
            manager.save(
                state_of(step), step=step, metrics={"loss": 9.0 - step}, tags=[f"t{step}"], wait=True
            )
        manager.pin("step=3")


def forgotten(folder: Path) -> None:
    """The same, with the first two forgotten: one of them can be brought back."""
    three(folder)
    with opened(folder) as manager:
        manager.forget("step=1", grace=0)
        manager.forget("step=2")


def damaged(folder: Path) -> None:
    """The same three; a pack that its sidecar heals, one that is lost and a manifest that is damaged, with a mirror."""
    three(folder, parity=30)
    with opened(folder) as manager:
        manager.workspace.set_mirror(folder / "mirror").sync()
        manager.workspace.unset_mirror()
        found = manager.checkpoints()
    packs = folder / "store/packs"
    flip(next(packs.rglob(f"{found[1].id}*.safetensors")))
    next(packs.rglob(f"{found[2].id}*.safetensors")).unlink()
    flip(folder / "store" / found[0].key)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)


def of_first_revision(folder: Path) -> None:
    """The same three in a catalog as an earlier version made it."""
    from alembic import command
    from alembic.config import Config

    three(folder)
    database = Database.open(f"sqlite:///{folder / 'store/catalog.db'}")
    with database.altering() as connection:
        config = Config(attributes={"connection": connection, "version_table": "catalog_version"})
        config.set_main_option("script_location", "ckpt_core.catalog:migrations")
        command.downgrade(config, "0001")
    database.close()


def backed_up(folder: Path) -> None:
    """The same three, and a backup of the catalog when there were two."""
    three(folder)
    backups.back_up(folder / "store/catalog.db", "prune")


# -- what they do ---------------------------------------------------------------------------------


def save(manager: CheckpointManager, folder: Path, say: Say, *, size: int = 0) -> None:
    manager.log({"train": 4}, step=4)
    made = manager.save(state_of(4, size), step=4, metrics={"loss": 5.0}, tags=["new"], wait=True).result()
    say(f"ack 4 {made.id}")
    # A tag is set after the save, which does not fail because of it.
    if manager.workspace.references.of_experiment(EXPERIMENT)[0].get("new") == made.id:
        say("tag new 4")


def save_behind(manager: CheckpointManager, folder: Path, say: Say) -> None:
    """Two at a time, as training does."""
    handles = []
    for step in (4, 5):
        manager.log({"train": step}, step=step)
        handles.append(manager.save(state_of(step), step=step, metrics={"loss": 9.0 - step}, tags=["new"]))
    for handle in handles:
        say(f"ack {handle.step} {handle.result(60).id}")
    manager.wait()


def save_large(manager: CheckpointManager, folder: Path, say: Say) -> None:
    save(manager, folder, say, size=LARGE)


def save_deduplicated(manager: CheckpointManager, folder: Path, say: Say) -> None:
    manager.load()
    save(manager, folder, say)


def save_and_retain(manager: CheckpointManager, folder: Path, say: Say) -> None:
    manager.load()
    save_behind(manager, folder, say)


def forget(manager: CheckpointManager, folder: Path, say: Say) -> None:
    for step in (1, 2):
        manager.forget(f"step={step}")
        say(f"gone {step}")


def undelete(manager: CheckpointManager, folder: Path, say: Say) -> None:
    manager.undelete("step=2")
    say("back 2")


def mark(manager: CheckpointManager, folder: Path, say: Say) -> None:
    manager.tag("step=1", "t2")
    say("tag t2 1")
    manager.untag("t3")
    say("tag t3 0")
    manager.pin("step=1")
    manager.unpin("step=3")


def prune(manager: CheckpointManager, folder: Path, say: Say) -> None:
    pruned = manager.prune(manager.plan_prune(now=True))
    say(f"rewritten {pruned.rewritten}")


def repair(manager: CheckpointManager, folder: Path, say: Say) -> None:
    report = manager.workspace.repair(mirror=folder / "mirror")
    say(f"healed {len(report.mended)} {report.ok}")


def reindex(manager: CheckpointManager, folder: Path, say: Say) -> None:
    say(f"indexed {manager.workspace.reindex().checkpoints}")


def load(manager: CheckpointManager, folder: Path, say: Say) -> None:
    """What first opens an older catalog: it is upgraded on the way."""
    assert same(manager.load(), 3)
    say(f"listed {len(manager.workspace.index.catalog().checkpoints())}")


def restore(manager: CheckpointManager, folder: Path, say: Say) -> None:
    manager.workspace.index.release()
    backups.restore(folder / "store/catalog.db")
    say("restored")


# -- and what must be found out ---------------------------------------------------------------------


def promise_first(manager: CheckpointManager, folder: Path, say: Say) -> None:
    say("gone 1")
    manager.forget("step=1")


def save_without_flush(manager: CheckpointManager, folder: Path, say: Say) -> None:
    os.fsync = lambda fd: None
    save(manager, folder, say)


def write_in_place(manager: CheckpointManager, folder: Path, say: Say) -> None:
    """A pack is written anew where it stands."""
    pack = next((folder / "store/packs").rglob("*.safetensors"))
    pack.write_bytes(pack.read_bytes())


BOTH = frozenset({1, 2})
RETAINING: dict[str, Any] = {"retention": [KeepLast(2)]}  # and the third, which is pinned
OPERATIONS: dict[str, Operation] = {
    "save": Operation(save, three, 60, saves=True),
    "save, asynchronous": Operation(save_behind, three, 60, {"max_pending": 2}, saves=True),
    "save, deduplicating": Operation(save_deduplicated, three, 60, saves=True),
    "forget": Operation(forget, three, 40, may_go=BOTH),
    "prune with rewriting": Operation(prune, forgotten, 60, may_go=BOTH),
    "repair": Operation(repair, damaged, 60, damaged=True),
    "reindex": Operation(reindex, three, 60),
    "migration of the catalog": Operation(load, of_first_revision, 50, saves=True),
    "save into a new store": Operation(save, nothing, 100, saves=True),
    "save past the page cache": Operation(save_large, three, 60, saves=True),
    "save with parity": Operation(save_deduplicated, three, 60, {"parity": 30}, saves=True),
    "save and retention": Operation(save_and_retain, three, 100, RETAINING, BOTH, saves=True),
    "undelete": Operation(undelete, forgotten, 40),
    "tags and pins": Operation(mark, three, 40),
    "restore of the catalog": Operation(restore, backed_up, 60),
}
CARELESS: dict[str, Operation] = {
    "promise first": Operation(promise_first, three, 20, may_go=BOTH),
    "save without flush": Operation(save_without_flush, three, 40),
    "write in place": Operation(write_in_place, three, 2),
}
"""What loses or tears: to see that this is seen."""
