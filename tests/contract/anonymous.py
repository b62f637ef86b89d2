"""What imports and exports take of memory that belongs to no file: as a child process measures it, which does nothing
else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_CHILD = """
import sys, threading, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from ckpt_core import CheckpointManager, export_checkpoint, import_checkpoint

what, name, *places = sys.argv[1:]
small, large, store = map(Path, places)
taken, done = [], threading.Event()

def anonymous():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) << 10

def watch():
    while not done.wait(0.001):
        taken.append(anonymous())

def move(place):
    if what == "import":
        import_checkpoint(manager, place, format=name, progress=lambda *_: taken.append(anonymous()))
    else:
        smallest, largest = sorted(manager.checkpoints(), key=lambda each: each.logical_bytes)
        export_checkpoint(manager, (smallest if place == small else largest).id, place, format=name)

with CheckpointManager(store, experiment="x") as manager:
    move(small)
    watcher = threading.Thread(target=watch)
    taken.clear()
    before = anonymous()
    watcher.start()
    move(large)
    done.set()
    watcher.join()
print("taken", max(taken) - before)
"""


def taken_by_import(name: str, small: Path, large: Path, store: Path) -> int:
    """The most anonymous memory that the import of `large` took, in bytes. `small` is one of the same format that is
    imported before, so that libraries and their threads are there already."""
    return _taken("import", name, small, large, store)


def taken_by_export(name: str, small: Path, large: Path, store: Path) -> int:
    """The same of an export of the larger of the two checkpoints in a store, to `large`."""
    return _taken("export", name, small, large, store)


def _taken(what: str, name: str, small: Path, large: Path, store: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, what, name, str(small), str(large), str(store)],
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("taken")[-1])
