"""Training scripts run as processes, killed, started again, and compared with a run that never stopped.

A script reports what it does through `Report`, a line of JSON for each fact, written at once so that a kill
loses none. Each process is forked off a server that has imported the frameworks already: a real process
with a fresh copy of everything, in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

PRELOAD = (
    "numpy", "sklearn.datasets", "sqlalchemy", "alembic.command", "ckpt_core.manager", "ckpt_core.session",
    "ckpt_core.catalog.migrate", "torch", "torch.utils.data", "torch._dynamo", "ckpt_torch",
)  # fmt: skip
"""What the server imports before it forks; `Training.preload` adds to it."""
SECONDS = 120.0


def server(preload: Sequence[str]) -> ForkServerContext:
    """What starts processes that have imported PRELOAD and these.

    Python has one such server, which imports nothing more once it runs: where the last test wanted other modules, it
    makes room for a new one. Else each process would import its framework by itself, which takes seconds.
    """
    wanted = [*PRELOAD, *preload]
    context = multiprocessing.get_context("forkserver")
    running = forkserver._forkserver
    if running._forkserver_pid is not None and running._preload_modules != wanted:
        os.kill(
            running._forkserver_pid, signal.SIGKILL
        )  # asked to end, it would wait for all that came of it
        os.waitpid(running._forkserver_pid, 0)
        os.close(running._forkserver_alive_fd)
        running._forkserver_pid = running._forkserver_alive_fd = running._forkserver_address = None
    context.set_forkserver_preload(wanted)
    return context


class Report:
    """Where a training script tells what it does. For use inside of the script."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def add(self, kind: str, **facts: Any) -> None:
        """One fact. Numbers are written so that equal lines mean equal bits."""
        line = json.dumps({"kind": kind, **{name: _exact(value) for name, value in facts.items()}})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _exact(value: Any) -> Any:
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(key): _exact(item) for key, item in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [_exact(item) for item in value]
    return value


def digest(state: Any) -> str:
    """SHA-256 of a state: of every tensor's bytes and every plain value, in an order that is always the same."""
    sha = hashlib.sha256()
    for part in _parts(state):
        sha.update(part)
    return sha.hexdigest()


def _parts(state: Any) -> Iterator[bytes]:
    if isinstance(state, Mapping):
        for key in sorted(state, key=str):
            yield f"{key}:".encode()
            yield from _parts(state[key])
    elif isinstance(state, (list, tuple)):
        for item in state:
            yield from _parts(item)
    elif hasattr(state, "detach"):
        yield str(state.dtype).encode()
        yield state.detach().cpu().contiguous().numpy().tobytes()
    elif isinstance(state, bytes):
        yield state
    else:
        yield repr(_exact(state)).encode()


@dataclass(frozen=True)
class Ended:
    """One process: its exit status (minus the signal that ended it), what it printed and logged, its report."""

    status: int
    output: str
    facts: tuple[dict[str, Any], ...]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [fact for fact in self.facts if fact["kind"] == kind]

    def only(self, kind: str) -> dict[str, Any]:
        found = self.of(kind)
        assert len(found) == 1, f"{len(found)} facts of kind {kind!r}:\n{self.output}"
        return found[0]


@dataclass
class Training:
    """A script with its options, in a folder of its own. `run` starts it, as often as one likes."""

    script: Path
    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    preload: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, **more: Any) -> Ended:
        """One process, to its end, whichever that is."""
        self.folder.mkdir(exist_ok=True)
        number = len(list(self.folder.glob("report-*")))
        report, output = self.folder / f"report-{number}", self.folder / f"output-{number}"
        report.touch()
        options = {"store": str(self.folder / "store"), "report": str(report), **self.options, **more}
        arguments = (str(self.script), options, str(output), dict(self.environment))
        process = server(self.preload).Process(target=_child, args=arguments)
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"not ended after {SECONDS} s:\n{output.read_text()}")
        facts = tuple(json.loads(line) for line in report.read_text().splitlines())
        return Ended(process.exitcode, output.read_text(), facts)

    def complete(self, **more: Any) -> Ended:
        """One process that must end well."""
        ended = self.run(**more)
        assert ended.status == 0, f"status {ended.status}:\n{ended.output}"
        return ended

    def killed(self, **die: Any) -> Ended:
        """One process that must be ended by SIGKILL."""
        ended = self.run(die=die)
        assert ended.status == -signal.SIGKILL, f"was to be killed at {die}:\n{ended.output}"
        return ended


def kill() -> None:
    """End this process by SIGKILL, with the workers that it has started. For use inside of the script.

    Workers left behind would find out after some seconds, as long as the test waits for their output to end.
    """
    os.killpg(os.getpgrp(), signal.SIGKILL)


def forget_logging() -> None:
    """Some framework that the server has imported may have set up logging, for all that are forked off it."""
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)


def _child(script: str, options: dict[str, Any], output: str, environment: dict[str, str]) -> None:
    os.setpgrp()
    os.environ.update(environment)
    forget_logging()
    if options.pop("nohup", False):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGHUP)
    multiprocessing.set_start_method("fork", force=True)  # as in a process that was started by hand
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [script, json.dumps(options)]
    os.chdir(Path(options["report"]).parent)
    runpy.run_path(script, run_name="__main__")


def assert_same_training(reference: Ended, parts: Sequence[Ended]) -> None:
    """The processes in `parts` together did what `reference` did alone, to the last bit.

    Facts of the kind `step` are told apart by their `at`; what was done twice, because the save before the
    kill was older, must have been done the same way twice. The facts of the kind `end` are compared too.
    """
    wanted = {json.dumps(fact["at"]): fact for fact in reference.of("step")}
    assert wanted, reference.output
    done: set[str] = set()
    for number, part in enumerate(parts):
        for fact in part.of("step"):
            at = json.dumps(fact["at"])
            assert fact == wanted.get(at), f"process {number}:\n{part.output}"
            done.add(at)
    assert done == set(wanted), f"never done: {sorted(set(wanted) - done)}"
    assert parts[-1].only("end") == reference.only("end"), parts[-1].output


def resumed_steps(parts: Sequence[Ended]) -> list[int]:
    """The step that each process after the first began from."""
    return [part.only("begin")["step"] for part in parts[1:]]
