"""Whole processes: `import ckpt_core`, and `ckpt ls` on a store of 1,000 checkpoints. P14."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import children, filling, neighbours
from benchmarks.results import Goal, Results, Settings
from benchmarks.timing import Contender, Samples, race

__all__ = ["run"]

P14_IMPORT = Goal("P14", "<=", 100.0, "ms")
P14_LS = Goal("P14", "<=", 500.0, "ms")
IMPORTS = {
    "torch.save": "torch",
    "DCP, 1 thread": "torch.distributed.checkpoint",
    "Orbax v0": "orbax.checkpoint",
    "moonclip": "moonclip.pytorch",
}


def run(settings: Settings, results: Results) -> None:
    """Processes in turn, each from its start to its end."""
    names = [each.name for each in neighbours.ALL if each.name in IMPORTS and each.problem() is None]
    contenders = [
        _process("python with numpy", ["-c", "import numpy"]),
        _process("ckpt-core", ["-c", "import numpy, ckpt_core"]),
        _process("ckpt-core, the manager", ["-c", "import numpy; from ckpt_core import CheckpointManager"]),
    ]
    if not settings.quick:
        contenders += [_process(name, ["-c", f"import numpy, {IMPORTS[name]}"]) for name in names]
    found = race(contenders, settings.rounds, settings.work, warm_up=True)
    results.race("startup", "import, as a whole process", found)
    base = found["python with numpy"]
    others = [samples for name, samples in found.items() if name in IMPORTS]
    for name, goal in (("ckpt-core", P14_IMPORT), ("ckpt-core, the manager", None)):
        ours = found[name]
        results.add(
            "startup", f"import beyond numpy, {name}",
            ours=ours, limit=base, neighbour=min(others, key=lambda each: each.median, default=None),
            value=1e3 * (ours.median - base.median), unit="ms", goal=goal,
        )  # fmt: skip
    _list(settings, results)


def _list(settings: Settings, results: Results) -> None:
    count = 50 if settings.quick else 1000
    store = settings.work / "listed"
    filling.fill_store(store, 0, count)
    contenders = [
        _process("python", ["-c", "pass"]),
        _process("ckpt ls", ["-m", "ckpt_core", "ls", "--store", str(store)]),
    ]
    found = race(contenders, settings.rounds, settings.work, warm_up=True)
    results.race("startup", f"ckpt ls, {count:,} checkpoints, as a whole process", found)
    ours: Samples = found["ckpt ls"]
    results.add(
        "startup", f"ckpt ls, {count:,} checkpoints",
        ours=ours, limit=found["python"], value=1e3 * ours.median, unit="ms", goal=P14_LS,
    )  # fmt: skip


def _process(name: str, arguments: Sequence[str]) -> Contender:
    @contextmanager
    def start(folder: Path) -> Iterator[Callable[[], Any]]:
        yield lambda: children.seconds_of(arguments, folder)

    return Contender(name, start)
