"""What a run ran on, and with which versions. Nothing that tells whose machine it is."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import neighbours
from benchmarks.limits import direct_works

__all__ = ["describe", "load_average", "neighbour_facts", "versions"]

_PACKAGES = (
    "ckpt-core", "numpy", "torch", "safetensors", "lightning", "jax", "orbax-checkpoint", "keras",
    "torch-checkpointing", "moonclip", "sqlalchemy", "msgspec", "matplotlib",
)  # fmt: skip


def describe(work: Path) -> dict[str, Any]:
    """Processor, cores, memory, system, and the disk that `work` is on."""
    return {
        "processor": _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "file_system": _file_system(work),
        "o_direct": direct_works(work),
    }


def versions() -> dict[str, str]:
    """The versions of what takes part, as far as it is installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def neighbour_facts() -> list[dict[str, str | None]]:
    """Each neighbour: how it is used, its version, and why it takes no part, if so."""
    return [
        {"name": each.name, "how": each.how, "version": each.version, "problem": each.problem()}
        for each in neighbours.ALL
    ]


def load_average() -> float:
    """How many processes wanted to run in the last minute: above the number of cores, figures mean little."""
    return round(os.getloadavg()[0], 1)


def _first(path: str, field: str) -> str | None:
    try:
        for line in Path(path).read_text("utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    except OSError:
        pass
    return None


def _file_system(folder: Path) -> str:
    """The type of the file system that a folder is on, as `ext4`."""
    best, kind = "", "unknown"
    try:
        for line in Path("/proc/mounts").read_text("utf-8").splitlines():
            _, place, found, *_ = line.split()
            inside = folder.resolve().is_relative_to(place)
            if inside and len(place) >= len(best):
                best, kind = place, found
    except OSError:
        pass
    return kind
