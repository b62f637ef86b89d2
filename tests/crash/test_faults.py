"""Every store operation fails once, at every place: what was acknowledged still loads, and the next command works.

Each command is run once to count its operations, then once for each of them with that one failing: before it
takes effect, after (a lost acknowledgement), or from then on (the disk is gone).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, CkptError, KeepLast
from ckpt_core.maintenance import prune as prune_module
from ckpt_core.maintenance.deletion import execute_prune
from ckpt_core.maintenance.prune import plan_prune
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.stores import MemoryStore, Store
from contract.store_case import new_repository
from crash.wrappers import FaultyStore

CHUNK = 4096
NO_CATALOG = "sqlite:////proc/nowhere/catalog.db"
FOLDERS = ("checkpoints", "packs", "refs", "metrics", "trash")


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of a few kilobytes are worth a rewrite."""
    monkeypatch.setattr(prune_module, "_REWRITE_AT_LEAST", CHUNK)


def state_of(step: int) -> dict[str, Any]:
    """Ten chunks, of which each step leaves fewer as they were."""
    values = [*range(10 - 2 * step), *range(100 * step, 100 * step + 2 * step)] if step < 5 else [step]
    return {"w": np.repeat(np.array(values, np.int64), CHUNK // 8), "step": step}


def copy_of(store: Store) -> MemoryStore:
    copied = MemoryStore()
    copied.put("store.json", store.get("store.json"))
    for folder in FOLDERS:
        for info in store.list(folder):
            copied.put(info.key, store.get(info.key))
    return copied


@pytest.fixture(scope="module")
def template() -> MemoryStore:
    """Checkpoints of steps 1 to 3, tagged and pinned here and there."""
    store = MemoryStore()
    new_repository(store, CHUNK)
    with CheckpointManager(store, experiment="x", catalog=NO_CATALOG) as manager:
        for step in (1, 2, 3):
            manager.save(state_of(step), step=step, tags=[f"t{step}"], wait=True)
        manager.pin("step=3")
    return store


@dataclass
class Scene:
    store: FaultyStore
    manager: CheckpointManager
    acknowledged: dict[int, str] = field(default_factory=dict)
    """Step -> id of what must be there in the end."""
    may_go: set[int] = field(default_factory=set)
    """Steps that the command may delete."""


def opened(template: MemoryStore, **options: Any) -> Iterator[Scene]:
    store = FaultyStore(copy_of(template))
    manager = CheckpointManager(store, experiment="x", catalog=NO_CATALOG, **options)
    manager.load()
    manager.begin_attempt(manager.loaded)
    scene = Scene(store, manager, {c.step: c.id for c in manager.checkpoints()})
    yield scene
    manager.close()


def save(scene: Scene) -> None:
    scene.manager.log({"loss": 1.0}, step=4)
    handle = scene.manager.save(state_of(4), step=4, tags=["new", "t1"])
    scene.acknowledged[4] = handle.result(60).id
    scene.manager.wait()


def save_at_once(scene: Scene) -> None:
    scene.acknowledged[4] = scene.manager.save(state_of(4), step=4, wait=True).result().id


def retain(scene: Scene) -> None:
    scene.may_go |= {1, 2}
    save(scene)


def forget(scene: Scene) -> None:
    scene.may_go.add(1)
    scene.manager.forget("step=1")


def prune(scene: Scene) -> None:
    scene.may_go |= {1, 2}
    for step in (1, 2):
        with suppress(CkptError):
            scene.manager.forget(f"step={step}", grace=0)
    scene.manager.prune()


def mark(scene: Scene) -> None:
    scene.manager.tag("step=1", "moved")
    scene.manager.pin("step=1")
    scene.manager.untag("t2")
    scene.manager.unpin("step=3")


def look(scene: Scene) -> None:
    """What only reads: whatever fails, nothing wrong is handed out."""
    state = scene.manager.load()
    assert np.array_equal(state["w"], state_of(state["step"])["w"])
    scene.manager.best()
    scene.manager.plan_prune()
    scene.manager.verify()
    with scene.manager.open("step=1") as reader:
        assert np.array_equal(reader["w"][:600], state_of(1)["w"][:600])


COMMANDS: dict[str, tuple[Callable[[Scene], None], dict[str, Any]]] = {
    "save": (save, {}),
    "save at once": (save_at_once, {}),
    "retain": (retain, {"retention": [KeepLast(2)]}),
    "forget": (forget, {}),
    "prune": (prune, {}),
    "mark": (mark, {}),
    "look": (look, {"metric": "loss"}),
}


def operations(template: MemoryStore, command: str, when: str) -> int:
    act, options = COMMANDS[command]
    for scene in opened(template, **options):
        scene.store.arm(0, when)  # type: ignore[arg-type]
        with suppress(CkptError):
            act(scene)
        scene.store.disarm()
        if command in ("prune", "retain"):
            assert any("-r1." in line for line in scene.store.log), "nothing was rewritten"
        return len(scene.store.log)
    raise AssertionError


@pytest.mark.parametrize("fault", ["before", "after", "lasting"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_operation_fails(template: MemoryStore, command: str, fault: str) -> None:
    act, options = COMMANDS[command]
    when = "after" if fault == "after" else "before"
    count = operations(template, command, when)
    assert count > (0 if when == "after" else 3) or command == "look"
    # A disk that stays gone is much like one that fails once: every third place will do.
    for number in range(1, count + 1, 3 if fault == "lasting" else 1):
        for scene in opened(template, **options):
            scene.store.arm(number, when, lasting=fault == "lasting")  # type: ignore[arg-type]
            with suppress(CkptError):
                act(scene)
            scene.manager.wait()
            struck = scene.store.struck
            scene.store.disarm()
            try:
                if command == "look":  # which changes nothing
                    assert scene.manager.load()["step"] == 3
                else:
                    check(scene)
            except BaseException:
                print(f"{command}: operation {number} of {count}, {struck}")
                raise


def check(scene: Scene) -> None:
    """A process that comes afterwards finds everything in order and can go on."""
    inner = copy_of(scene.store)
    with CheckpointManager(inner, experiment="x", catalog=NO_CATALOG) as fresh:
        there = {c.id: c for c in fresh.checkpoints()}
        lost = {s for s, i in scene.acknowledged.items() if i not in there} - scene.may_go
        assert not lost, f"lost steps {sorted(lost)}"
        report = fresh.verify()
        assert report.ok, report.problems
        for checkpoint in there.values():
            assert np.array_equal(fresh.load(checkpoint.id)["w"], state_of(checkpoint.step)["w"])
    # The process that met the fault goes on, too.
    manager = scene.manager
    assert manager.save(state_of(5), step=5).result(60).step == 5
    manager.wait()
    repository = manager.workspace.repository
    for _ in range(2):
        execute_prune(repository, plan_prune(repository, orphan_seconds=-1, now=True))
    assert plan_prune(repository, orphan_seconds=-1, now=True).empty
    for checkpoint in manager.checkpoints():
        assert np.array_equal(manager.load(checkpoint.id)["w"], state_of(checkpoint.step)["w"])
    assert manager.verify().ok
    assert not list(scene.store.list("trash"))


@pytest.mark.parametrize("fault", ["before", "lasting"])
def test_every_operation_of_opening_fails(template: MemoryStore, fault: str) -> None:
    for number in range(1, 200):
        store = FaultyStore(copy_of(template))
        store.arm(number, lasting=fault == "lasting")
        manager = None
        with suppress(CkptError):
            manager = CheckpointManager(store, experiment="x", catalog=NO_CATALOG)
            manager.load()
            manager.begin_attempt(manager.loaded)
        finished = store.struck is None
        store.disarm()
        if manager is not None:
            assert manager.save(state_of(5), step=5).result(60).step == 5
            manager.close()
        if finished:
            return
    raise AssertionError("opening has no end")


@pytest.mark.parametrize("fault", ["before", "after", "lasting"])
def test_every_operation_of_making_a_store_fails(fault: str) -> None:
    for number in range(1, 200):
        store = FaultyStore(MemoryStore())
        store.arm(number, "after" if fault == "after" else "before", lasting=fault == "lasting")
        with suppress(CkptError):
            Workspace.open(store, create=True).close()
        finished = store.struck is None
        store.disarm()
        with CheckpointManager(store, experiment="x", catalog=NO_CATALOG) as manager:
            assert manager.save(state_of(5), step=5, wait=True).result().step == 5
        if finished:
            return
    raise AssertionError("making has no end")


def test_every_operation_of_reindexing_fails(template: MemoryStore) -> None:
    for number in range(1, 200):
        store = FaultyStore(copy_of(template))
        workspace = Workspace.open(store)
        store.arm(number)
        with suppress(CkptError):
            workspace.reindex()
        finished = store.struck is None
        store.disarm()
        assert workspace.reindex().checkpoints == 3
        assert len(workspace.index.catalog().checkpoints()) == 3
        workspace.close()
        if finished:
            return
    raise AssertionError("reindexing has no end")
