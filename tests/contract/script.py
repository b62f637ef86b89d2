"""What the training scripts of all adapters share: ways to die in a save, a store with faults, what was logged.

For use inside of a script that `contract.training` runs as a process.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from ckpt_core import BaseHook, CheckpointManager, HookContext, HookEvent, StoreError
from ckpt_core.stores import ObjectWriter
from ckpt_core.stores.local import LocalStore
from contract.training import kill


class Kill(BaseHook):
    """Ends the process as soon as a save of this step or of a later one is acknowledged."""

    events = (HookEvent.AFTER_SAVE,)

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def execute(self, context: HookContext) -> None:
        if context.step is not None and context.step >= self.step:
            kill()


def hooks_of(options: dict[str, Any]) -> list[BaseHook]:
    """The hooks that `die` asks for; a death inside of a save is prepared, too."""
    die = options["die"]
    if "fsync" in die:
        die_inside_a_save(die["fsync"])
    return [Kill(die["saved"])] if "saved" in die else []


def die_inside_a_save(syncs: int) -> None:
    """Between two writes of a save: when something is made durable for the so manieth time."""
    original, left = os.fsync, [syncs]

    def fsync(file: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            kill()
        original(file)

    os.fsync = fsync


class _FailingSave(LocalStore):
    """Refuses one pack: the n-th that is begun."""

    def __init__(self, root: str, number: int) -> None:
        super().__init__(root)
        self.left = number

    def create(self, key: str) -> ObjectWriter:
        if key.startswith("packs/"):
            self.left -= 1
            if self.left == 0:
                raise StoreError("scripted fault: input/output error", kind="io")
        return super().create(key)


class _FullDisk(LocalStore):
    """Refuses to grow by more than so many bytes, as a disk does, whatever is written."""

    def __init__(self, root: str, nbytes: int) -> None:
        super().__init__(root)
        self.left = nbytes

    def put(self, key: str, data: Any, *, durable: bool = True) -> None:
        self.take(len(data))
        super().put(key, data, durable=durable)

    def create(self, key: str) -> ObjectWriter:
        writer = super().create(key)
        write = writer.write

        def counted(offset: int, data: Any) -> None:
            self.take(memoryview(data).nbytes)
            write(offset, data)

        writer.write = counted  # type: ignore[method-assign]
        return writer

    def take(self, nbytes: int) -> None:
        if nbytes > self.left:
            raise StoreError("no space left on device: free some and go on", kind="full")
        self.left -= nbytes


def store_of(options: dict[str, Any]) -> Any:
    """The `root` to save in: the path of the store, or the store with the fault that `fault` asks for."""
    fault = options.get("fault")
    if not fault:
        return options["store"]
    if "write" in fault:
        return _FailingSave(options["store"], fault["write"])
    return _FullDisk(options["store"], fault["full"])


def series_of(manager: CheckpointManager) -> list[tuple[str, int, float]]:
    """Every metric that was logged, by name and step; of what was logged twice, what the last attempt said."""
    segments = manager.workspace.segments.all(manager.experiment)
    points = sorted((point for _, _, found in segments for point in found), key=lambda point: point.attempt)
    latest = {(point.name, point.step): point.value for point in points}
    return [(name, step, value) for (name, step), value in sorted(latest.items())]


def log_to_output() -> None:
    """The engine's log to the process's output, where the tests look for it."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
