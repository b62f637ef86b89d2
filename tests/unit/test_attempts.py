"""How attempts stand: what is written down of their beginning and their end, by whom, and what of the killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckpt_core import CheckpointManager, StoreError, UsageError
from ckpt_core.config import surroundings
from ckpt_core.pipeline import attempts
from ckpt_core.session import Session
from ckpt_core.stores import MemoryStore
from ckpt_core.tracker.experiments import ExperimentTracker
from crash.wrappers import ScriptedStore


def status(root: Any, experiment: str = "digits") -> tuple[str, str]:
    with ExperimentTracker(root) as tracker:
        found = tracker.experiment(experiment)
        return found.status, found.reason


def begun(root: Any, **options: Any) -> CheckpointManager:
    manager = CheckpointManager(root, experiment="digits", **options)
    manager.log({"loss": 1.0}, step=1)
    return manager


def test_a_manager_that_only_reads_begins_nothing(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, experiment="digits", config={"lr": 1}) as manager:
        assert manager.latest() is None
    assert not (tmp_path / "experiments").exists()


def test_running_then_finished(tmp_path: Path) -> None:
    with begun(tmp_path) as manager:
        assert status(tmp_path) == ("running", "")
        assert manager.tracker.experiment("digits").status == "running"
    assert status(tmp_path) == ("finished", "")
    assert not list((tmp_path / "leases").iterdir())


def test_an_exception_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), begun(tmp_path):
        _ = 1 // 0
    assert status(tmp_path) == ("failed", "ZeroDivisionError: integer division or modulo by zero")


@pytest.mark.parametrize(("code", "expected"), [(0, "finished"), (None, "finished"), (3, "failed")])
def test_an_exit_is_what_its_code_says(tmp_path: Path, code: int | None, expected: str) -> None:
    with pytest.raises(SystemExit), begun(tmp_path):
        sys.exit(code)
    assert status(tmp_path)[0] == expected


def test_close_in_a_finally_sees_the_exception(tmp_path: Path) -> None:
    manager = begun(tmp_path)
    with pytest.raises(ZeroDivisionError):
        try:
            _ = 1 // 0
        finally:
            manager.close()
    assert status(tmp_path)[0] == "failed"


def test_whatever_an_exception_says_can_be_written_down(tmp_path: Path) -> None:
    error = FileNotFoundError("caf\udce9.txt\0 is missing")  # as the system names a file that is not UTF-8
    with pytest.raises(FileNotFoundError) as caught, begun(tmp_path):
        raise error
    assert caught.value is error
    assert status(tmp_path) == ("failed", r"FileNotFoundError: caf\udce9.txt\x00 is missing")


def test_what_is_said_first_counts(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), begun(tmp_path) as manager:
        manager.end_attempt("preempted", "SIGTERM")
        _ = 1 // 0
    assert status(tmp_path) == ("preempted", "SIGTERM")


def test_an_outcome_that_is_none_is_refused(tmp_path: Path) -> None:
    with begun(tmp_path) as manager:
        for word in ("running", "done", "", None):
            with pytest.raises(UsageError, match="'finished', 'failed', 'preempted'"):
                manager.end_attempt(word)  # type: ignore[arg-type]
        assert status(tmp_path) == ("running", "")
    assert status(tmp_path) == ("finished", "")


def test_the_exception_itself_will_do_as_a_reason(tmp_path: Path) -> None:
    with begun(tmp_path) as manager:
        manager.end_attempt("failed", ValueError("the loss is NaN"))  # type: ignore[arg-type]
    assert status(tmp_path) == ("failed", "the loss is NaN")


def test_an_attempt_goes_on(tmp_path: Path) -> None:
    with begun(tmp_path) as manager:
        manager.end_attempt("preempted", "SIGTERM")
        assert status(tmp_path)[0] == "preempted"
        manager.continue_attempt()
        manager.continue_attempt()
        assert status(tmp_path) == ("running", "")
    assert status(tmp_path)[0] == "finished"


def test_the_next_attempt_ends_the_one_before(tmp_path: Path) -> None:
    with begun(tmp_path, config={"lr": 1}) as manager:
        manager.save({"w": 1}, step=1, wait=True)
        manager.begin_attempt(manager.latest())
        first, second = manager.tracker.experiment("digits").attempts
        assert (first.status, second.status) == ("finished", "running")
        assert second.parent is not None
        assert (second.parent.relation, second.parent.experiment, second.parent.step) == (
            "resumed",
            "digits",
            1,
        )
        assert second.config == {"lr": 1}


CHILD = """
import os, sys
from ckpt_core import CheckpointManager
manager = CheckpointManager(sys.argv[1], experiment="digits", config={"lr": 0.1})
manager.log({"loss": 1.0}, step=1)
manager.save({"w": 1}, step=1, wait=True)
print("saved", flush=True)
exec(sys.argv[2])
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Any]:
    made: list[subprocess.Popen[str]] = []

    def start(then: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", CHILD, str(tmp_path), then]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        made.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        return process

    yield start
    for process in made:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_one_that_was_killed_is_lost_at_once(tmp_path: Path, child: Any) -> None:
    process = child("sys.stdin.read() if False else __import__('signal').pause()")
    assert status(tmp_path) == ("running", "")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert status(tmp_path) == ("lost", "")
    with begun(tmp_path) as manager:
        found = [each.status for each in manager.tracker.experiment("digits").attempts]
        assert found == ["lost", "running"]


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        ("pass", ("finished", "")),
        ("raise ValueError('no')", ("failed", "ValueError: no")),
        ("os._exit(0)", ("lost", "")),
    ],
)
def test_one_whose_manager_nobody_closed(
    tmp_path: Path, child: Any, then: str, expected: tuple[str, str]
) -> None:
    child(then).wait()
    assert status(tmp_path) == expected


def test_a_session_says_how_training_ended(tmp_path: Path) -> None:
    for error, expected in ((None, "finished"), (RuntimeError("out of memory"), "failed")):
        with CheckpointManager(tmp_path, experiment="digits") as manager:
            session = Session(manager, signals=())
            session.resume(None)
            session.begin(0)
            session.step_end(1)
            if error is None:
                session.finish(1, None, lambda: {"w": 1})
            else:
                session.fail(error, 1, None)
            found = manager.tracker.experiment("digits")
            assert found.status == expected
        assert status(tmp_path)[0] == expected
    assert status(tmp_path)[1] == "RuntimeError: out of memory"


def test_a_signal_is_a_preemption_and_one_that_is_survived_is_none(tmp_path: Path) -> None:
    seen: list[str] = []

    def survive(number: int, frame: Any) -> None:
        seen.append(status(tmp_path)[0])

    before = signal.signal(signal.SIGTERM, survive)
    try:
        with CheckpointManager(tmp_path, experiment="digits") as manager:
            session = Session(manager, signals=[signal.SIGTERM])
            session.resume(None)
            session.begin(0)
            session.step_end(1)
            os.kill(os.getpid(), signal.SIGTERM)
            session.safe_point(1, None, lambda: {"w": 1})
            assert seen == ["preempted"]
            assert status(tmp_path)[0] == "running"
            session.close()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_store_without_room_is_told_later(caplog: pytest.LogCaptureFixture) -> None:
    store = ScriptedStore(MemoryStore())

    def refuse(operation: str, key: str, when: str) -> None:
        if operation in ("create", "put") and key.startswith(("experiments/", "leases/")):
            raise StoreError("no room", kind="full")

    manager = CheckpointManager(store, experiment="digits", config={"lr": 1})
    store.script = refuse
    manager.log({"loss": 1.0}, step=1)
    assert "that attempt 1 began is not written down yet: no room" in caplog.text
    store.script = None
    manager.log({"loss": 2.0}, step=2)
    manager.save({"w": 1}, step=2, wait=True)
    found = manager.tracker.experiment("digits")
    assert (found.status, found.config) == ("running", {"lr": 1})
    manager.close()


def test_a_sign_of_life_comes_again_where_its_lease_was_taken_away(tmp_path: Path) -> None:
    with begun(tmp_path) as manager:
        for lease in (tmp_path / "leases").iterdir():
            lease.unlink()
        assert status(tmp_path)[0] == "lost"
        manager._keeper.sign()
        assert status(tmp_path)[0] == "running"


def test_a_forked_child_that_ends_is_not_the_end_of_the_attempt(tmp_path: Path, child: Any) -> None:
    process = child(
        "os.fork() or sys.exit(); os.wait(); print('ended', flush=True); __import__('signal').pause()"
    )
    assert process.stdout.readline() == "ended\n"
    assert status(tmp_path)[0] == "running"


def test_signs_of_life_come_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "PERIOD", 0.01)
    came = __import__("threading").Event()
    monkeypatch.setattr(attempts.AttemptKeeper, "sign", lambda self: came.set())
    with begun(tmp_path):
        assert came.wait(30)


# -- surroundings


def git(folder: Path, *arguments: str) -> None:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *settings, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_commit_and_whether_it_is_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "git_dirty" not in surroundings()
    git(tmp_path, "init", "-q")
    (tmp_path / "train.py").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    (tmp_path / "notes").write_text("git does not track this")
    assert surroundings()["git_dirty"] is False
    (tmp_path / "train.py").write_text("b")
    assert surroundings()["git_dirty"] is True
    git(tmp_path, "add", ".")
    assert surroundings()["git_dirty"] is True
    monkeypatch.setenv("PATH", "")
    assert "git_dirty" not in surroundings()


def test_whether_it_is_what_runs_starts_nothing_that_the_folder_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q")
    (tmp_path / "train.py").write_text("a")
    (tmp_path / ".gitattributes").write_text("*.py diff=told\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    (tmp_path / "train.py").write_text("b")
    for name in ("core.fsmonitor", "diff.external", "diff.told.command", "diff.told.textconv"):
        program = tmp_path / ".git" / name
        program.write_text(f'#!/bin/sh\ntouch "{program}.ran"\n')
        program.chmod(0o755)
        git(tmp_path, "config", name, str(program))
    assert surroundings()["git_dirty"] is True
    assert not list((tmp_path / ".git").glob("*.ran"))


def test_packages_and_hardware() -> None:
    found = surroundings()
    assert found["packages"]["numpy"] == __import__("numpy").__version__
    assert found["packages"] == dict(sorted(found["packages"].items()))
    assert found["hardware"]["cores"] >= 1
    assert {"host", "python", "platform"} <= found.keys()
