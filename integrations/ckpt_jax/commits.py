"""The one moment that Orbax tells its handlers nothing of: when a checkpoint has got its final name.

A handler is called before that; after it, Orbax only records how long it took. What is done at that moment
is `orbax_handler.py`'s.
"""

from __future__ import annotations

import logging
import re
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import jax.monitoring
from etils import epath

from ckpt_core.errors import CkptError
from ckpt_jax.sidecar import Sidecar, unseal

__all__ = ["MARKER", "Commit", "Commits", "committed_in", "item_of", "place_of", "step_of"]

_TEMPORARY = ".orbax-checkpoint-tmp"
_log = logging.getLogger("ckpt_core.orbax")
MARKER = "commit_success.txt"
_METADATA = "_CHECKPOINT_METADATA"
_STEP = re.compile(r"(?:\w+_)?\d+")
"""The names that Orbax's managers give to the folders of steps."""
_ORBAX = ("/jax/orbax/", "/jax/checkpoint/")


@dataclass(eq=False, slots=True)
class Commit:
    """One checkpoint that is being written: the folder it is written to, and the one it will be.

    `sealed`: each item (or `""` for a checkpoint without items) of which everything is written.
    """

    folder: epath.Path
    final: epath.Path
    step: int
    sealed: dict[str, Sidecar] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether everybody sees it now."""
        if self.final != self.folder:
            return bool(self.final.exists())
        return bool((self.final / MARKER).exists())  # where a folder cannot be renamed, as on object storage


class Commits:
    """The checkpoints that are being written, and who is told when one is there. Thread-safe.

    `done` is called once for each, on Orbax's thread or on that of `settle`: it must neither block nor raise.
    """

    def __init__(self, done: Callable[[Commit], None]) -> None:
        self._done = done
        self._lock = threading.RLock()
        self._pending: dict[str, Commit] = {}
        _listen(self)

    def begin(self, folder: epath.Path) -> tuple[Commit, bool]:
        """The checkpoint that a folder is or that its item belongs to, and whether it has just begun."""
        root = _root(folder)
        with self._lock:
            commit = self._pending.get(str(root))
            if commit is not None:
                return commit, False
            final = root.parent / _final_name(root.name)
            commit = self._pending[str(root)] = Commit(root, final, step_of(final))
            return commit, True

    def seal(self, folder: epath.Path, sidecar: Sidecar) -> None:
        """Everything of this item, or of this checkpoint without items, is written."""
        with self._lock:
            commit, _ = self.begin(folder)
            if commit.folder == commit.final != folder and (folder / _METADATA).exists():
                # Nothing is renamed here, and only now it shows that this is no item but a whole checkpoint.
                del self._pending[str(commit.folder)]
                commit.folder = commit.final = folder
                self._pending[str(folder)] = commit
            commit.sealed[item_of(commit, folder)] = sidecar

    def settle(self) -> None:
        """Notices what has been committed by now."""
        with self._lock:
            done = [commit for commit in self._pending.values() if commit.sealed and commit.is_done]
            for commit in done:
                del self._pending[str(commit.folder)]
        for commit in done:
            self._done(commit)

    def give_up(self) -> list[Commit]:
        """Those that will never be committed, when nothing is being written any more."""
        self.settle()
        with self._lock:
            left, self._pending = list(self._pending.values()), {}
        return left

    def fail(self, folder: epath.Path) -> Commit | None:
        """The checkpoint that a folder is or that its item belongs to has failed; None if that is known."""
        with self._lock:
            return self._pending.pop(str(_root(folder)), None)

    @property
    def any(self) -> bool:
        """Whether one is being written."""
        return bool(self._pending)


def committed_in(root: epath.Path) -> list[Commit]:
    """Every checkpoint of a manager's folder that is committed and was sealed, by step."""
    if not root.exists():
        return []
    folders = [each for each in root.iterdir() if _STEP.fullmatch(each.name) and each.is_dir()]
    if any((each / MARKER).exists() for each in folders):
        folders = [each for each in folders if (each / MARKER).exists()]
    found = []
    for folder in folders:
        try:
            sealed = _sealed_in(folder)
        except CkptError as error:
            _log.error("%s", error)
        else:
            found += [Commit(folder, folder, step_of(folder), sealed)] if sealed else []
    return sorted(found, key=lambda commit: commit.step)


def _sealed_in(folder: epath.Path) -> dict[str, Sidecar]:
    places = {"": folder} | {each.name: each for each in folder.iterdir() if each.is_dir()}
    sidecars = {item: unseal(each) for item, each in places.items()}
    return {item: sealed for item, sealed in sidecars.items() if sealed is not None}


_listeners: weakref.WeakSet[Commits] = weakref.WeakSet()
_listening = threading.Lock()
_registered = False


def _listen(commits: Commits) -> None:
    global _registered
    with _listening:
        _listeners.add(commits)
        if not _registered:
            jax.monitoring.register_event_duration_secs_listener(_heard)
            _registered = True


def _heard(event: str, duration_secs: float, **facts: str | int) -> None:
    """Orbax records durations before and after it renames; by which names may change from version to version."""
    if event.startswith(_ORBAX):
        for commits in list(_listeners):
            if commits.any:
                try:
                    commits.settle()
                except Exception as error:  # it is Orbax that is talking, and its save goes on
                    _log.error("whether a checkpoint is committed could not be found out: %s", error)


def item_of(commit: Commit, folder: epath.Path) -> str:
    """The name of the item in that folder; `""` for a checkpoint without items."""
    return "" if folder == commit.folder else _final_name(folder.name)


def place_of(folder: epath.Path) -> tuple[epath.Path, str]:
    """Of a folder in a committed checkpoint: that of the checkpoint, and the name of the item; `""` where it is
    the checkpoint itself."""
    if (folder / _METADATA).exists():
        return folder, ""
    is_item = (folder.parent / _METADATA).exists() or not _digits(folder.name)
    return (folder.parent, folder.name) if is_item else (folder, "")


def step_of(root: epath.Path) -> int:
    """The step of a checkpoint: what the name of its folder ends with, or 0."""
    return int(_digits(root.name) or 0)


def _root(folder: epath.Path) -> epath.Path:
    # An item lies in the temporary folder of its checkpoint; a checkpoint without items is one itself. Where
    # nothing is renamed, as on object storage, a checkpoint is told by the number that its name ends with.
    parent = folder.parent
    if _TEMPORARY in parent.name:
        return parent
    is_item = _TEMPORARY not in folder.name and (parent.name.isdecimal() or not _digits(folder.name))
    return parent if is_item else folder


def _final_name(name: str) -> str:
    return name.partition(_TEMPORARY)[0]


def _digits(name: str) -> str:
    found = re.search(r"(\d+)$", _final_name(name))
    return found[1] if found else ""
