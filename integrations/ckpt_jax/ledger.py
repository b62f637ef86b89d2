"""What the engine knows of the checkpoints that Orbax writes: one small record of each, as a checkpoint of its own.

So they are listed, tagged, pinned and asked for as all others are. The data stays where Orbax put it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from ckpt_core import Checkpoint, CheckpointManager, UsageError
from ckpt_core.errors import CkptError
from ckpt_jax import sidecar
from ckpt_jax.commits import MARKER, Commit, committed_in

__all__ = ["Ledger", "Record"]

_log = logging.getLogger("ckpt_core.orbax")


class Record:
    """What was recorded of one checkpoint. `files`: facts of those that no sidecar of its items covers."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.path = str(facts["path"])
        self.items: Mapping[str, str] = facts["items"]
        self.files: Mapping[str, tuple[int, str]] = {
            n: (int(s), str(d)) for n, (s, d) in facts["files"].items()
        }

    def files_of(self, item: str) -> dict[str, tuple[int, str]]:
        """Facts of those files that belong to this item, to the whole checkpoint, or to an item of somebody
        else's handler, which nobody else checks."""
        others = self.items.keys() - {item}
        return {name: facts for name, facts in self.files.items() if name.partition("/")[0] not in others}


class Ledger:
    """The records of one experiment. For one thread at a time, but for reading."""

    def __init__(self, manager: CheckpointManager) -> None:
        self.manager = manager
        self._records: dict[str, Record] = {}

    def write(self, commit: Commit) -> Checkpoint:
        """Records a checkpoint that has been committed. Raises CkptError."""
        facts = {
            "path": str(commit.final),
            "nbytes": sum(sealed.nbytes for sealed in commit.sealed.values()),
            "items": {item: sealed.digest for item, sealed in commit.sealed.items()},
            "files": {name: list(sidecar.digest_of(commit.final / name)) for name in _outside(commit)},
        }
        metrics = self._metrics(commit)
        try:
            handle = self.manager.save({"orbax": facts}, step=commit.step, metrics=metrics, wait=True)
        except UsageError as error:
            if error.kind != "step":
                raise
            # Back to an earlier step: another training, or the same one from further back.
            self.manager.begin_attempt(self._before(commit.step))
            handle = self.manager.save({"orbax": facts}, step=commit.step, metrics=metrics, wait=True)
        return handle.result()

    def resumed(self, checkpoint: Checkpoint) -> None:
        """Training goes on from this checkpoint: what follows is of its lineage."""
        self.manager.loaded = checkpoint

    def find(self, step: int, item: str, digest: str) -> tuple[Checkpoint, Record] | None:
        """The record of the checkpoint of which this is an item, wherever it has been moved to."""
        return next((each for each in self._of(step) if each[1].items.get(item) == digest), None)

    def at(self, path: epath.Path, step: int) -> Checkpoint | None:
        """The newest record of a checkpoint of this step at this path."""
        return next((each[0] for each in self._of(step) if each[1].path == str(path)), None)

    def _of(self, step: int) -> Iterator[tuple[Checkpoint, Record]]:
        """The records of a step, the newest first."""
        for checkpoint in reversed(self.manager.checkpoints()):
            record = self._record(checkpoint) if checkpoint.step == step else None
            if record is not None:
                yield checkpoint, record

    def under(self, root: epath.Path) -> list[tuple[Checkpoint, epath.Path]]:
        """Every record of a checkpoint in this folder, from the oldest to the newest."""
        records = [(checkpoint, self._record(checkpoint)) for checkpoint in self.manager.checkpoints()]
        paths = [
            (checkpoint, epath.Path(record.path)) for checkpoint, record in records if record is not None
        ]
        return [(checkpoint, path) for checkpoint, path in paths if path.parent == root]

    def unknown(self, root: epath.Path) -> list[Commit]:
        """The checkpoints in this folder, by step, that are in no record, under whatever path."""
        known = {path for _, path in self.under(root)}
        return [
            commit for commit in committed_in(root)
            if commit.final not in known
            and not any(self.find(commit.step, item, sealed.digest) for item, sealed in commit.sealed.items())
        ]  # fmt: skip

    def forget(self, checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
        """Drops records. Returns those that were there."""
        return self.manager.workspace.forget(list(checkpoints))

    def _record(self, checkpoint: Checkpoint) -> Record | None:
        if checkpoint.id not in self._records:
            try:
                with self.manager.open(checkpoint.id) as reader:
                    tree = reader.manifest.state
            except CkptError as error:
                _log.error("the record of step %d cannot be read: %s", checkpoint.step, error)
                return None
            if not isinstance(tree, dict) or "orbax" not in tree:
                return None  # somebody saves other things in this experiment
            self._records[checkpoint.id] = Record(tree["orbax"])
        return self._records[checkpoint.id]

    def _before(self, step: int) -> Checkpoint | None:
        earlier = [c for c in self.manager.checkpoints() if c.step < step]
        return max(earlier, key=lambda c: c.order, default=None)

    def _metrics(self, commit: Commit) -> dict[str, float]:
        """Those that were given to Orbax with the save, as far as they are numbers; it keeps them as an item."""
        path = commit.final / "metrics" / "metrics"
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError):
            return {}
        numbers = {
            str(name): value for name, value in dict(values).items() if isinstance(value, (int, float))
        }
        best = self.manager.metric
        return {
            name: float(value) for name, value in numbers.items() if name != best or not math.isnan(value)
        }


def _outside(commit: Commit) -> list[str]:
    """The files of a checkpoint that Orbax wrote when its items were sealed."""
    inside = {
        f"{item}/{name}" if item else name
        for item, sealed in commit.sealed.items()
        for name in (*sealed.files, sidecar.NAME)
    }
    if commit.final == commit.folder:
        inside.add(MARKER)  # which says that it is committed, and may still be on its way
    return sorted(name for name in sidecar.files_below(commit.final) if name not in inside)
