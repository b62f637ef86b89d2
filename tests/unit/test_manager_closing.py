"""The end of a manager: close, the end of the interpreter, forks, and what is asked of it afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_core import CheckpointManager, HookContext, HookEvent, HookPriority, StoreError, UsageError, hook
from ckpt_core.stores import MemoryStore
from crash.wrappers import ScriptedStore


def state(step: int = 1) -> dict[str, Any]:
    return {"w": np.full(1000, step)}


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a program in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def test_close_waits_for_what_is_pending_and_may_be_repeated(store_path: Path) -> None:
    manager = CheckpointManager(store_path, experiment="x", max_pending=5)
    handles = [manager.save(state(step), step=step) for step in range(5)]
    manager.close()
    assert all(handle.done() for handle in handles)
    manager.close()
    with CheckpointManager(store_path, experiment="x") as again:
        assert [c.step for c in again.checkpoints()] == [0, 1, 2, 3, 4]


def test_after_close_saves_are_refused_by_their_handles(
    store_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = CheckpointManager(store_path, experiment="x")
    manager.save(state(1), step=1, wait=True)
    manager.close()
    assert manager.save(state(2), step=2).exception(0).kind == "closed"
    assert "step 2 was not made: the manager is closed" in caplog.text
    with pytest.raises(RuntimeError, match="the manager is closed"):
        manager.save(state(2), step=2, wait=True)
    with pytest.raises(UsageError, match="closed"):
        manager.log({"a": 1}, step=2)


def test_after_close_the_store_still_answers(store_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = CheckpointManager(store_path, experiment="x")
    manager.save(state(1), step=1, tags=["t"], wait=True)
    manager.close()
    assert manager.resolve("t").step == 1
    assert (manager.load()["w"] == 1).all()
    assert "without the catalog" not in caplog.text


def test_a_hook_cannot_close_the_manager_it_runs_in(store_path: Path) -> None:
    errors = []

    def close(context: HookContext) -> None:
        try:
            manager.close()
        except UsageError as error:
            errors.append(error.kind)

    with CheckpointManager(store_path, experiment="x") as manager:
        manager.hooks.register_hook(close, HookEvent.AFTER_SAVE)
        manager.save(state(1), step=1)
        manager.save(state(2), step=2, wait=True)
    assert errors == ["nested", "nested"]


def test_background_hooks_end_before_close_returns(store_path: Path) -> None:
    done = []
    slow = hook(HookEvent.AFTER_SAVE, priority=HookPriority.BACKGROUND)(
        lambda context: done.append(context.step)
    )
    with CheckpointManager(store_path, experiment="x", hooks=[slow]) as manager:
        manager.save(state(1), step=1)
    assert done == [1]


def test_an_interrupted_close_can_be_repeated(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = CheckpointManager(store_path, experiment="x")
    handle = manager.save(state(1), step=1)

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(manager._queue, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        manager.close()
    monkeypatch.undo()
    manager.close()
    assert handle.done()


def test_metrics_that_cannot_be_written_are_told_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    store = ScriptedStore(MemoryStore())
    manager = CheckpointManager(store, experiment="x")
    manager.log({"a": 1.0, "b": 2.0}, step=1)

    def script(operation: str, key: str, when: str) -> None:
        if key.startswith("metrics/"):
            raise StoreError("no room", kind="full")

    store.script = script
    manager.close()
    assert "2 metric values could not be written and are lost" in caplog.text


PROGRAM = """
    import sys
    import numpy as np
    from ckpt_core import CheckpointManager
    manager = CheckpointManager(sys.argv[1], experiment="x", max_pending=3)
    for step in range(3):
        manager.save({"w": np.full(300_000, step)}, step=step)
    manager.log({"loss": 0.5}, step=3)
"""


def test_the_end_of_the_interpreter_closes_what_was_left_open(store_path: Path) -> None:
    finished = run(PROGRAM, store_path)
    assert (finished.returncode, finished.stderr) == (0, "")
    with CheckpointManager(store_path, experiment="x") as manager:
        assert [c.step for c in manager.checkpoints()] == [0, 1, 2]
        assert manager.verify().ok
        points = manager.workspace.index.catalog().metric_series("x", "loss")
        assert [point.value for point in points] == [0.5]


def test_an_exception_at_the_top_loses_no_pending_save(store_path: Path) -> None:
    finished = run(PROGRAM + "\n    raise SystemExit(3)\n", store_path)
    assert finished.returncode == 3
    with CheckpointManager(store_path, experiment="x") as manager:
        assert len(manager.checkpoints()) == 3


def test_a_forked_child_neither_hangs_nor_saves_with_its_parents_manager(store_path: Path) -> None:
    """The child is forked while a save is under way: locks may be held, threads are gone."""
    program = """
        import os, sys, threading
        import numpy as np
        from ckpt_core import CheckpointManager, HookEvent, UsageError
        manager = CheckpointManager(sys.argv[1], experiment="x")
        entered, may_go = threading.Event(), threading.Event()
        def hold(context):
            entered.set()
            may_go.wait(60)
        manager.hooks.register_hook(hold, HookEvent.BEFORE_SAVE)
        manager.log({"loss": 1.0}, step=0)
        handle = manager.save({"w": np.arange(10)}, step=1)
        entered.wait(60)
        child = os.fork()
        if child == 0:
            for attempt in (lambda: manager.save({}, step=2), lambda: manager.log({"a": 1}, step=2),
                            lambda: manager.begin_attempt(None)):
                try:
                    attempt()
                except UsageError as error:
                    assert error.kind == "forked", error
                else:
                    os._exit(9)
            manager.close()
            sys.exit(7)   # runs what is registered for the end, as a child of multiprocessing may
        status = os.waitpid(child, 0)[1]
        may_go.set()
        print(os.waitstatus_to_exitcode(status), handle.result(60).step)
        manager.close()
        print(len(manager.checkpoints()), len(list(manager.workspace.segments.keys())))
    """
    finished = run(program, store_path)
    assert finished.stdout.split() == ["7", "1", "1", "1"], finished.stderr


def test_a_child_may_open_a_manager_of_its_own(store_path: Path) -> None:
    program = """
        import os, sys
        import numpy as np
        from ckpt_core import CheckpointManager
        manager = CheckpointManager(sys.argv[1], experiment="x")
        manager.save({"w": np.arange(10)}, step=1, wait=True)
        child = os.fork()
        if child == 0:
            with CheckpointManager(sys.argv[1], experiment="x") as own:
                own.load()
                own.save({"w": np.arange(11)}, step=2, wait=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print([c.step for c in manager.checkpoints()])
    """
    finished = run(program, store_path)
    assert finished.stdout.strip() == "[1, 2]", finished.stderr
