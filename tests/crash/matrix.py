"""Runs operations into faults, one at a time, and has looked at what is left of the store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.mounts import PowerDisk
from crash.afterwards import Promises, Verdict, examine_after
from crash.injection import build
from crash.operations import CARELESS, OPERATIONS, Operation, eager, opened

__all__ = ["Matrix", "Point"]


@dataclass(frozen=True)
class Point:
    """One fault at one call, and what came of it."""

    struck: str | None
    """Which call it was; None where the operation made fewer, and so ended well."""
    calls: int
    """How many calls there were; 0 where the process died."""
    said: str
    verdict: Verdict


class Matrix:
    """The process that the operations are forked from, the stores that they begin with, and a disk to cut the power
    of. Close it."""

    def __init__(self, folder: Path) -> None:
        eager()
        self._folder = folder
        self._pipe = str(folder / "pipe")
        self._disk: PowerDisk | None = None
        self._begun: dict[str, Promises] = {}
        self._counts: dict[str, int] = {}
        os.mkfifo(self._pipe)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("operating_child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "LD_PRELOAD": str(build(folder)),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
        )
        assert self._answer() == "ready"

    def count(self, name: str) -> int:
        """How many calls the operation makes when nothing fails."""
        if name not in self._counts:
            self._counts[name] = self._count(name)
        return self._counts[name]

    def run(self, name: str, fault: str | None, at: int) -> Point:
        """Does an operation whose `at`-th call meets a fault; looks at what is left."""
        operation, promised = _operation(name), self._prepared(name)
        folder = self._folder / "point"
        with self._begin(name, folder, fault) as place:
            code, said = self._operate({"operation": name, "folder": str(place), "fault": fault, "at": at})
        assert "no power to cut" not in said
        lines = [line.split(maxsplit=3) for line in said.splitlines()]
        words = {line[0]: line for line in lines}
        struck = " ".join(words["struck"][1:]) if "struck" in words else None
        deadly = struck is not None and fault in ("SIGKILL", "power cut")
        assert code == (-9 if deadly else 0), f"{code}: {said}"
        promised.hear(lines)
        try:
            verdict = examine_after(folder, operation, promised, full=fault == "ENOSPC")
        finally:
            shutil.rmtree(folder)
        if "raised" in words:
            verdict.stuck.append(f"an error that is none of ours: {said}")
        if "refused" in words and operation.saves and fault == "EIO" and "catalog.db" in str(struck):
            verdict.stuck.append(f"it failed because of the catalog: {said}")
        calls = int(words["calls"][1]) if "calls" in words else 0
        return Point(struck, calls, said, verdict)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)
        if self._disk is not None:
            self._disk.close()

    def _count(self, name: str) -> int:
        point = self.run(name, None, 0)
        assert "refused" not in point.said, point.said
        assert "raised" not in point.said, point.said
        assert point.verdict.ok, point.verdict
        assert point.calls >= _operation(name).least, "not every call was seen"
        return point.calls

    def _prepared(self, name: str) -> Promises:
        """Makes the store that an operation begins with, the first time; what it promises."""
        template = self._folder / f"{name} template"
        if name not in self._begun:
            _operation(name).prepare(template)
            self._begun[name] = _promises_of(template)
        begun = self._begun[name]
        return Promises(dict(begun.steps), begun.audited)

    @contextmanager
    def _begin(self, name: str, folder: Path, fault: str | None) -> Iterator[Path]:
        """Where the operation is to work; what is left is in `folder` afterwards."""
        template = self._folder / f"{name} template"
        if fault != "power cut":
            shutil.copytree(template, folder)
            yield folder
            return
        if self._disk is None:
            self._disk = PowerDisk(self._folder)
        place = self._disk.root / "point"
        shutil.copytree(template, place)
        self._disk.sync()
        yield place
        self._disk.remount()
        shutil.copytree(place, folder)
        shutil.rmtree(place)

    def _operate(self, task: dict[str, Any]) -> tuple[int, str]:
        assert self._process.stdin is not None
        reading = os.open(self._pipe, os.O_RDONLY | os.O_NONBLOCK)
        with closing(os.fdopen(reading, "rb", buffering=0)) as said:
            self._process.stdin.write(json.dumps({**task, "pipe": self._pipe}) + "\n")
            self._process.stdin.flush()
            code = int(self._answer())
            return code, (said.read() or b"").decode()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def _operation(name: str) -> Operation:
    return (OPERATIONS | CARELESS)[name]


def _promises_of(template: Path) -> Promises:
    """Read off a copy: to open a store is to change it."""
    if not (template / "store").exists():
        return Promises({})
    copied = template.with_suffix(".copy")
    shutil.copytree(template, copied)
    try:
        with opened(copied) as manager:
            steps = {c.id: c.step for c in manager.checkpoints()}
            return Promises(steps, len(manager.workspace.index.catalog().audit_log()))
    finally:
        shutil.rmtree(copied)
