"""What an import takes of memory that belongs to no file: as a child process measures it, which does nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_CHILD = """
import sys, threading, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from ckpt_core import CheckpointManager, import_checkpoint

name, small, large, store = sys.argv[1], *map(Path, sys.argv[2:])
taken, done = [], threading.Event()

def anonymous():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) << 10

def watch():
    while not done.wait(0.001):
        taken.append(anonymous())

with CheckpointManager(store, experiment="x") as manager:
    import_checkpoint(manager, small, format=name)
    watcher = threading.Thread(target=watch)
    before = anonymous()
    watcher.start()
    import_checkpoint(manager, large, format=name, progress=lambda *_: taken.append(anonymous()))
    done.set()
    watcher.join()
print("taken", max(taken) - before)
"""


def taken_by_import(name: str, small: Path, large: Path, store: Path) -> int:
    """The most anonymous memory that the import of `large` took, in bytes. `small` is one of the same format that is
    imported before, so that libraries and their threads are there already."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, name, str(small), str(large), str(store)],
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("taken")[-1])
