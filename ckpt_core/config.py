"""The one place where the engine reads its surroundings: environment variables, host, process, job, code."""

from __future__ import annotations

import getpass
import os
import platform
import socket
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["actor", "environment", "provenance", "version_of"]

_FRAMEWORKS = ("torch", "lightning", "pytorch_lightning", "jax", "keras", "tensorflow", "transformers", "numpy")
_JOBS = {
    "slurm_job": "SLURM_JOB_ID",
    "slurm_task": "SLURM_ARRAY_TASK_ID",
    "pbs_job": "PBS_JOBID",
    "lsf_job": "LSB_JOBID",
    "kubernetes_pod": "POD_NAME",
}


def environment(name: str) -> str | None:
    """An environment variable; None where it is not set or empty."""
    return os.environ.get(name) or None


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@cache
def actor() -> str:
    """Who acts, for the audit trail: `user@host:pid`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user id has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}:{os.getpid()}"


def provenance() -> dict[str, Any]:
    """What manifests say of their writer: host, process, versions, job, and the commit of the code."""
    facts: dict[str, Any] = {
        "ckpt_core": version_of("ckpt-core") or "unknown",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "frameworks": {
            name: str(module.__version__)
            for name in _FRAMEWORKS
            if (module := sys.modules.get(name)) is not None and hasattr(module, "__version__")
        },
    }
    jobs = {name: value for name, variable in _JOBS.items() if (value := environment(variable))}
    if jobs:
        facts["job"] = jobs
    commit = _git_commit(Path.cwd())
    if commit:
        facts["git_commit"] = commit
    return facts


def _git_commit(folder: Path) -> str | None:
    """The commit that is checked out around `folder`, read from git's own files: no process is started."""
    for base in (folder, *folder.parents):
        git = base / ".git"
        try:
            if git.is_file():  # a worktree or submodule
                git = (base / git.read_text().removeprefix("gitdir:").strip()).resolve()
            head = (git / "HEAD").read_text().strip()
        except (OSError, UnicodeDecodeError):
            continue
        name = head.removeprefix("ref:").strip()
        if name == head:
            return head
        return _git_reference(git, name)
    return None


def _git_reference(git: Path, name: str) -> str | None:
    for folder in (git, git / "../.."):  # a worktree keeps its branches in the main folder
        try:
            return (folder / name).read_text().strip()
        except (OSError, UnicodeDecodeError):
            pass
        try:
            for line in (folder / "packed-refs").read_text().splitlines():
                commit, _, reference = line.partition(" ")
                if reference == name:
                    return commit
        except (OSError, UnicodeDecodeError):
            pass
    return None
