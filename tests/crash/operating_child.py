"""A program that does what it is told to until a fault ends it; `matrix.py` runs it, with `faults.c` loaded.

It imports everything once and forks for every line it reads. A line is JSON: `{"operation": …, "folder": …,
"fault": …, "at": …, "pipe": …}`. To the pipe go the lines of the operation (see `operations.py`), `struck N CALL
PATH` when the fault has come, and, unless it was the end: `refused ERROR` where the operation raised one of the
engine's errors, `raised …` for any other; `ack …` of a save that follows in the same process, now that there are no
more faults; and `calls N`.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from ckpt_core import CheckpointManager, CkptError
from crash.injection import Injection
from crash.operations import CARELESS, EXPERIMENT, OPERATIONS, eager, state_of

LATER = 90
"""The step of the save that follows a fault in the same process."""


def operate(injection: Injection, task: dict[str, Any], out: int) -> None:
    def say(text: str) -> None:
        os.write(out, f"{text}\n".encode())

    operation, folder = (OPERATIONS | CARELESS)[task["operation"]], Path(task["folder"])
    manager = None
    injection.arm(task["folder"], task["fault"], task["at"], out)
    try:
        manager = CheckpointManager(
            folder / "store", experiment=EXPERIMENT, metric="loss", **operation.options
        )
        operation.act(manager, folder, say)
        manager.close()
    except CkptError as error:
        say(f"refused {type(error).__name__} {' '.join(str(error).split())}")
    except BaseException:
        say(f"raised {' '.join(traceback.format_exc().split())}")
    say(f"calls {injection.disarm()}")
    if task["fault"] is not None:
        go_on(manager, say)


def go_on(manager: CheckpointManager | None, say: Any) -> None:
    """The process that met the fault saves once more, with the manager that it has."""
    try:
        if manager is not None and not manager._closed:
            manager.wait()
            say(f"ack {LATER} {manager.save(state_of(LATER), step=LATER, wait=True).result().id}")
            manager.close()
    except BaseException:
        say(f"raised {' '.join(traceback.format_exc().split())}")


def warm_up(injection: Injection) -> None:
    """Once through everything, so that what is imported late is there before the fork."""
    with tempfile.TemporaryDirectory() as kept:
        for name in ("save with parity", "repair", "reindex", "migration of the catalog", "undelete"):
            folder = Path(kept) / name
            OPERATIONS[name].prepare(folder)
            task = {"operation": name, "folder": str(folder), "fault": None, "at": 0}
            with open(os.devnull, "wb") as nowhere:
                operate(injection, task, nowhere.fileno())


def main() -> None:
    eager()
    logging.disable()  # what the engine says of each fault
    injection = Injection()
    warm_up(injection)
    gc.freeze()  # a child that collects garbage would copy all of this
    print("ready", flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            out = os.open(task["pipe"], os.O_WRONLY)
            try:
                operate(injection, task, out)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
