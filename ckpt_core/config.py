"""The one place where the engine reads its surroundings: environment, host, process, job, code."""

from __future__ import annotations

import getpass
import os
import platform
import re
import signal
import socket
import stat
import sys
import threading
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ckpt_core import clock, ids

__all__ = [
    "actor",
    "cores",
    "environment",
    "has_ended",
    "process",
    "provenance",
    "surroundings",
    "version_of",
    "yield_to_others",
]

_FRAMEWORKS = (
    "torch", "lightning", "pytorch_lightning", "jax", "keras", "tensorflow", "transformers", "numpy",
)  # fmt: skip
_JOBS = {
    "slurm_job": "SLURM_JOB_ID",
    "slurm_task": "SLURM_ARRAY_TASK_ID",
    "pbs_job": "PBS_JOBID",
    "lsf_job": "LSB_JOBID",
    "kubernetes_pod": "POD_NAME",
}
_GIT_SECONDS = 5.0
_COMMIT = re.compile("[0-9a-f]{40,64}")
_LONGEST = 1 << 20
_processes: dict[int, str] = {}  # by number: a forked child is another process


def environment(name: str) -> str | None:
    """An environment variable; None where it is not set or empty."""
    return os.environ.get(name) or None


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def yield_to_others(by: int = 10) -> None:
    """Has this thread, and those that it starts, give way to others where there are not processors for all.

    On Linux, where a thread has a priority of its own; elsewhere it would be that of the process.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + by)


def actor() -> str:
    """Who acts, for the audit trail: `user@host:pid`."""
    try:
        user = getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container whose user id has no name
        user = str(os.getuid())
    return _printable(f"{user}@{socket.gethostname()}:{os.getpid()}")


def process() -> str:
    """Names this process among all that run anywhere: `boot/pid namespace/pid/start time` where the system
    tells them, else something that nobody else will be called."""
    pid = os.getpid()
    if pid not in _processes:
        place, start = _kernel(), _start_of(pid)
        _processes[pid] = f"{place}/{pid}/{start}" if place and start else f"unknown/{pid}/{ids.token()}"
    return _processes[pid]


def has_ended(name: str) -> bool:
    """Whether the process that `process` named so is certainly gone. Of one on another machine, or in
    another container, that cannot be told."""
    place, _, rest = name.rpartition("/")[0].rpartition("/")
    pid, start = rest, name.rpartition("/")[2]
    if not place or place != _kernel() or not pid.isdecimal():
        return False
    return _start_of(int(pid)) != start


def provenance() -> dict[str, Any]:
    """What manifests say of their writer: host, process, versions, job, and the commit of the code.

    Never raises: no save fails because of what its surroundings look like.
    """
    facts: dict[str, Any] = {
        "ckpt_core": version_of("ckpt-core") or "unknown",
        "host": _printable(socket.gethostname()),
        "pid": os.getpid(),
        "platform": _platform(),
        "python": platform.python_version(),
        "frameworks": {
            name: _printable(str(found))
            for name in _FRAMEWORKS
            if (found := getattr(sys.modules.get(name), "__version__", None)) is not None
        },
    }
    jobs = {name: _printable(value) for name, variable in _JOBS.items() if (value := environment(variable))}
    if jobs:
        facts["job"] = jobs
    commit = _git_commit()
    if commit:
        facts["git_commit"] = commit
    return facts


def surroundings() -> dict[str, Any]:
    """What is written down of where an attempt runs: `provenance`, the packages, the hardware, and whether files
    that git tracks differ from the commit. Never raises."""
    facts = provenance()
    if "git_commit" in facts:
        dirty = _is_dirty()
        if dirty is not None:
            facts["git_dirty"] = dirty
    facts["hardware"] = _hardware()
    facts["packages"] = _packages()
    return facts


def _packages() -> dict[str, str]:
    """Name and version of each installed distribution, by the names of their folders: to read what they say
    of themselves takes a hundred times as long."""
    found: dict[str, str] = {}
    for folder in sys.path:
        with suppress(OSError):
            for name in os.listdir(folder or "."):
                if name.endswith(".dist-info"):
                    distribution, _, number = name.removesuffix(".dist-info").partition("-")
                    found.setdefault(_printable(distribution.replace("_", "-").lower()), _printable(number))
    return dict(sorted(found.items()))


def _hardware() -> dict[str, Any]:
    """Processor, cores, memory, and NVIDIA's graphics processors by their driver: no framework is asked, as that
    would begin to use them."""
    facts: dict[str, Any] = {"cores": cores()}
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("model name"):
            facts["processor"] = line.partition(":")[2].strip()
            break
    with suppress(ValueError, OSError):
        facts["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cards = [
        line.partition(":")[2].strip()
        for place in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        for line in (_text(place) or "").splitlines()
        if line.startswith("Model:")
    ]
    if cards:
        facts["gpus"] = cards
    return facts


def _is_dirty() -> bool | None:
    """Whether files that git tracks differ from the commit; None where git does not say.

    Its exit code alone tells, so there is no pipe that a process which is forked at this moment could keep open.
    Of the programs that the folder's configuration names, none is started but filters, without which files as those
    of Git LFS would seem to differ.
    """
    command = [
        "git", "-c", "core.fsmonitor=false", "diff", "--quiet", "--no-ext-diff", "--no-textconv", "HEAD", "--",
    ]  # fmt: skip
    settings = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    nowhere = [
        (os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0)
        for descriptor in (0, 1, 2)
    ]  # fmt: skip
    begun = clock.monotonic()
    try:
        child = os.posix_spawnp("git", command, settings, file_actions=nowhere)
        pause = threading.Event()
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return {0: False, 1: True}.get(os.waitstatus_to_exitcode(status))
            if clock.monotonic() - begun > _GIT_SECONDS:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return None
            pause.wait(0.002)
    except OSError:  # there is no git, or somebody else asked how the process ended
        return None


def _kernel() -> str | None:
    """The boot of the system and the namespace in which this process's number counts."""
    boot = _text(Path("/proc/sys/kernel/random/boot_id"))
    try:
        return f"{boot.strip()}/{os.readlink('/proc/self/ns/pid')}" if boot else None
    except OSError:
        return None


def _start_of(pid: int) -> str | None:
    """When a process was started, in ticks since the boot; None where there is none of that number."""
    fields = (_text(Path(f"/proc/{pid}/stat")) or "").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "XZ" else None


def _printable(text: str) -> str:
    """`text` as JSON can hold it: what the system gave is bytes, and need not be valid Unicode."""
    return text.encode(errors="replace").decode()


def _platform() -> str:
    """The system, as `Linux-6.1.0-x86_64`. Not `platform.platform()`, which starts a process: a data loader's
    worker that is forked at that moment inherits the pipe, and the save waits for its end for ever."""
    system = os.uname()
    return f"{system.sysname}-{system.release}-{system.machine}"


def _git_commit() -> str | None:
    """The commit that is checked out here, read from git's own files: no process is started."""
    try:
        here = Path.cwd()
    except OSError:  # the folder this process works in was deleted
        return None
    for base in (here, *here.parents):
        git = base / ".git"
        if git.is_file():  # a worktree or submodule
            git = base / (_text(git) or "").removeprefix("gitdir:").strip()
        head = _text(git / "HEAD")
        if head is not None:
            found = _git_reference(git, head[4:].strip()) if head.startswith("ref:") else head.strip()
            return found if found and _COMMIT.fullmatch(found) else None
    return None


def _git_reference(git: Path, name: str) -> str | None:
    for folder in (git, git / "../.."):  # a worktree keeps its branches in the main folder
        loose = _text(folder / name)
        if loose is not None:
            return loose.strip()
        for line in (_text(folder / "packed-refs") or "").splitlines():
            commit, _, reference = line.partition(" ")
            if reference == name:
                return commit
    return None


def _text(path: Path) -> str | None:
    """What a small text file holds; None where it is none: a named pipe would hold its reader up."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, encoding="utf-8") as file:
            return file.read(_LONGEST) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    except (OSError, ValueError):
        return None
