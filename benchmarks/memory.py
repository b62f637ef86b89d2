"""The most memory that saves and loads need besides the state: P10. Each figure is a process of its own.

python -m benchmarks.memory WHAT WHO STATE FOLDER      # one figure, as JSON
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import children, engine, neighbours, states
from benchmarks.neighbours import Neighbour
from benchmarks.neighbours.contract import Start
from benchmarks.results import Goal, Results, Settings
from benchmarks.timing import Samples, best_of

__all__ = ["run"]

P10_SAVE = Goal("P10", "<=", 128.0, "MiB")
P10_ASYNC = Goal("P10", "<=", 1.05, "× state")
P10_LOAD = Goal("P10", "<=", 128.0, "MiB")
OURS = "ckpt-core"
GOALS = {"save": P10_SAVE, "stall": P10_ASYNC, "load": P10_LOAD}
WORDS = {
    "save": "peak extra memory, synchronous save",
    "stall": "peak extra memory, asynchronous save ÷ state",
    "load": "peak extra memory, load into tensors",
}


def run(settings: Settings, results: Results) -> None:
    """Ours and every neighbour's, one process each."""
    name = settings.state("standard")
    nbytes = states.make(name).nbytes
    for what, goal in GOALS.items():
        found = {OURS: _asked(what, OURS, name, settings)}
        for neighbour in neighbours.ALL:
            wanted = not settings.quick or (what, neighbour) == ("save", neighbours.TORCH)
            if wanted and getattr(neighbour, what) is not None and neighbour.problem(nbytes) is None:
                found[neighbour.name] = _asked(what, neighbour.name, name, settings)
        results.race("memory", f"{WORDS[what]}, {name} state", found)
        ours = found.pop(OURS)
        if ours.problem is not None:
            raise RuntimeError(f"{WORDS[what]}: {ours.problem}")
        size = nbytes if what == "stall" else 1 << 20
        results.add(
            "memory", f"{WORDS[what]}, {name} state",
            ours=ours, neighbour=best_of(list(found.values())), value=ours.median / size, unit=goal.unit, goal=goal,
        )  # fmt: skip


def _asked(what: str, who: str, state: str, settings: Settings) -> Samples:
    samples = Samples(who, "B")
    for _ in range(min(3, settings.rounds) if who == OURS else 1):  # it is the same each time, but for pages
        try:
            with tempfile.TemporaryDirectory(dir=settings.work) as folder:
                samples.values.append(children.ask("benchmarks.memory", what, who, state, folder)["extra"])
        except RuntimeError as error:
            samples.problem, samples.values = f"failed: {error}"[:200], []
            break
    return samples


# -- in the child --------------------------------------------------------------------------------------


def _main(what: str, who: str, state_name: str, folder: Path) -> dict[str, Any]:
    """Peak of resident memory while it works, less what was resident before.

    Before comes the same with a state of a few kilobytes, so that what is imported and kept for ever by the
    first call is not counted as the state's.
    """
    neighbour = next((each for each in neighbours.ALL if each.name == who), None)
    for name, count in (("first", True), ("second", False)):
        state = states.evenly(10, 40_000) if count else states.make(state_name)
        place = folder / name
        place.mkdir()
        if what == "load":
            with _start("save", neighbour)(state, place) as save:
                save()
        _reset_peak()
        before = _resident("VmRSS")
        with _start(what, neighbour)(state, place) as work:
            if what != "stall":  # a stall is that of a second save: the memory of the first one counts
                _reset_peak()
                before = _resident("VmRSS")
            work()
        peak = _peak()
    return {"extra": peak - before, "before": before, "peak": peak, "state": state.nbytes}


def _start(what: str, neighbour: Neighbour | None) -> Start:
    if neighbour is not None:
        start: Start = getattr(neighbour, what)
        return start
    ours: dict[str, Start] = {
        "save": engine.save,
        "stall": lambda state, folder: engine.save_second(state.tree, folder, state.step),
        "load": engine.load_into,
    }
    return ours[what]


def _reset_peak() -> None:
    """Has the kernel forget the peak so far, where it can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        print("the peak includes what was before: the kernel does not reset it", file=sys.stderr)


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"the kernel does not tell {field}")


def _peak() -> int:
    try:
        return _resident("VmHWM")
    except (OSError, RuntimeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


if __name__ == "__main__":
    print(json.dumps(_main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))))
