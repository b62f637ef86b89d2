"""What a manifest says of its writer, in surroundings as odd as they come: it never keeps a save from being made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from ckpt_core import config

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_folder(base: Path, head: str, **files: str) -> Path:
    git = base / ".git"
    git.mkdir(parents=True)
    (git / "HEAD").write_text(head)
    for name, text in files.items():
        path = git / name.replace("__", "/").replace("_", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return git


def commit_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    monkeypatch.chdir(folder)
    return config.provenance().get("git_commit")


def test_it_names_the_writer() -> None:
    facts = config.provenance()
    assert {"ckpt_core", "host", "pid", "platform", "python", "frameworks"} <= facts.keys()
    assert facts["pid"] == os.getpid()
    assert json.loads(json.dumps(facts)) == facts
    assert f":{os.getpid()}" in config.actor()


def test_it_names_frameworks_that_were_imported_and_imports_none(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("keras")
    fake.__version__ = "3.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keras", fake)
    monkeypatch.setitem(sys.modules, "jax", types.ModuleType("jax"))  # no version: half imported
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    frameworks = config.provenance()["frameworks"]
    assert frameworks["keras"] == "3.1"
    assert "jax" not in frameworks
    assert "tensorflow" not in sys.modules


def test_it_names_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("POD_NAME", "")
    monkeypatch.setenv("PBS_JOBID", "7\udcff")
    job = config.provenance()["job"]
    assert job["slurm_job"] == "42"
    assert job["pbs_job"] == "7?"  # what JSON can hold of it
    assert "kubernetes_pod" not in job


@pytest.mark.parametrize("below", ["", "deep/down"])
def test_a_branch_that_is_checked_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    git_folder(tmp_path, "ref: refs/heads/main\n", refs__heads__main=COMMIT + "\n")
    (tmp_path / below).mkdir(parents=True, exist_ok=True)
    assert commit_at(tmp_path / below, monkeypatch) == COMMIT


def test_a_packed_branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = f"# pack-refs with: peeled\n{'f' * 40} refs/heads/other\n{COMMIT} refs/heads/main\n^{'e' * 40}\n"
    git_folder(tmp_path, "ref: refs/heads/main\n", packed_refs=packed)
    assert commit_at(tmp_path, monkeypatch) == COMMIT


def test_a_detached_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git_folder(tmp_path, COMMIT + "\n")
    assert commit_at(tmp_path, monkeypatch) == COMMIT


def test_a_worktree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = git_folder(tmp_path / "main", f"{'f' * 40}\n", refs__heads__side=COMMIT + "\n")
    (git / "worktrees/side").mkdir(parents=True)
    (git / "worktrees/side/HEAD").write_text("ref: refs/heads/side\n")
    (tmp_path / "side").mkdir()
    (tmp_path / "side/.git").write_text(f"gitdir: {git}/worktrees/side\n")
    assert commit_at(tmp_path / "side", monkeypatch) == COMMIT


def test_it_agrees_with_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        base = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
        done = subprocess.run([*base, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        git("init")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    assert commit_at(tmp_path, monkeypatch) is None
    git("commit", "--allow-empty", "-m", "first")
    assert commit_at(tmp_path, monkeypatch) == git("rev-parse", "HEAD")
    git("pack-refs", "--all")
    assert commit_at(tmp_path, monkeypatch) == git("rev-parse", "HEAD")
    git("worktree", "add", "-b", "side", "tree")
    assert commit_at(tmp_path / "tree", monkeypatch) == git("rev-parse", "side")


@pytest.mark.parametrize(
    "head", ["", "ref: ", "ref: ../../../secret", "not a commit", "\0", "ref: " + "x" * 5000]
)
def test_what_is_no_commit_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    (tmp_path / "secret").write_text("password")
    git_folder(tmp_path / "a/b", head)
    assert commit_at(tmp_path / "a/b", monkeypatch) is None


def test_a_file_of_bytes_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git_folder(tmp_path, "ref: refs/heads/main")
    (tmp_path / ".git/HEAD").write_bytes(b"\xff" * 100)
    assert commit_at(tmp_path, monkeypatch) is None


def test_a_folder_that_is_gone_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    try:
        assert "git_commit" not in config.provenance()
    finally:
        os.chdir(tmp_path)


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(config.getpass, "getuser", nobody)
    assert config.actor().startswith(f"{os.getuid()}@")


def test_no_process_is_started() -> None:
    """One that is forked at the wrong moment keeps a pipe open, and the save would wait for it for ever."""
    script = (
        "import sys, platform\n"
        "sys.addaudithook(lambda event, _: event in ('subprocess.Popen', 'os.fork', 'os.posix_spawn') and sys.exit(event))\n"
        "from ckpt_core.config import actor, provenance\n"
        "provenance(), actor()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_variables_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_TEST", "x")
    assert config.environment("CKPT_TEST") == "x"
    monkeypatch.setenv("CKPT_TEST", "")
    assert config.environment("CKPT_TEST") is None
    assert config.version_of("numpy") is not None
    assert config.version_of("no-such-distribution") is None


def test_provenance_starts_no_process() -> None:
    # A worker that is forked at that moment would inherit the pipe, and the save would wait for ever.
    script = (
        "import sys\n"
        "def hook(event, _):\n"
        "    if event in ('subprocess.Popen', 'os.system', 'os.posix_spawn', 'os.fork'): raise SystemExit(3)\n"
        "sys.addaudithook(hook)\n"
        "from ckpt_core.config import actor, provenance\n"
        "assert provenance()['platform']\n"
        "assert actor()\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
