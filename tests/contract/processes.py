"""Several real processes that begin together."""

from __future__ import annotations

import os
import subprocess
import sys

READY, GO = "ready\n", "go\n"
START = """
import sys
from ckpt_core.catalog import Catalog, migrate
from ckpt_core.catalog.engine import Database
from contract.catalog_case import MORE, attempt, checkpoint, point, uid
print("ready", flush=True)
assert sys.stdin.readline() == "go\\n"
"""


def at_once(code: str, *arguments: str, processes: int = 4) -> list[str]:
    """Runs the code in processes that start together; what each printed."""
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", START + code, str(number), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for number in range(processes)
    ]
    for each in running:
        assert each.stdout is not None
        assert each.stdout.readline() == READY, each.communicate()[1]
    for each in running:
        assert each.stdin is not None
        each.stdin.write(GO)
        each.stdin.flush()
    said = [each.communicate(timeout=120) for each in running]
    for each, (_, errors) in zip(running, said, strict=True):
        assert each.returncode == 0, errors
    return [output for output, _ in said]


FORKS = """
import os
from ckpt_core import CheckpointManager
code, processes = sys.argv[2], int(sys.argv[1])
children = []
for number in range(processes):
    child = os.fork()
    if child == 0:
        sys.argv = [sys.argv[0], str(number), *sys.argv[3:]]
        try:
            exec(compile(code, "child", "exec"))
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * processes
"""


def forked(code: str, *arguments: str, processes: int) -> None:
    """Runs the code in many processes at once, which share the time that imports take."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", START + FORKS, str(processes), code, *arguments],
        input=GO,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
