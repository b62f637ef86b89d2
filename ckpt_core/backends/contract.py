"""What a storage backend is: the one class that somebody writes who wants checkpoints in a format of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from ckpt_core.backends.parts import differing

__all__ = ["StorageBackend"]


class StorageBackend(ABC):
    """How a state becomes files at a path, and how it comes back.

    The engine hands it a path that nobody else sees, and takes up what it has written there: cut into chunks,
    hashed, durable, committed as a whole, mirrored, verified and repaired as all else in a store. Nothing of that
    is the backend's. Backends that are installed under the entry-point group `ckpt_core.backends` are found by
    name; `ckpt_core.testing.BackendContract` is the suite that each of them should pass.

    Methods are called from any thread, but never two at a time for the same path. What they raise is told as an
    error of the save or the load; they need not clean up.
    """

    name: str
    """What manifests call it. It is written to disk: keep it stable and unlike others'."""

    suffix: ClassVar[str] = ""
    """How the names of its files end, as `.npz`; empty where it writes a folder. What `guess_backend` goes by."""

    framework: ClassVar[str] = ""
    """Whose tensors an export gives it, as `torch`; empty: those that the state has."""

    @abstractmethod
    def save_checkpoint(self, data: Any, path: Path) -> dict[str, Any]:
        """Writes a state to `path`, which is not there yet: a file of this name, or a folder with files in it.

        `data` is the state in plain containers: dicts, lists, tuples, plain values, tensors of the frameworks that
        it came from, and objects that have a codec (see `take_apart`). It is read only, and gone afterwards. What
        is returned stands in the manifest under `writer`, for people: plain values as JSON has them.

        Nothing need be durable when it returns. Links are not taken up, nor folders without files.
        """

    @abstractmethod
    def load_checkpoint(self, path: Path, device: str | None = None) -> Any:
        """The state that was written to `path`. Every byte there is the one that was saved; none can be written.

        `device`: where the framework is to put the tensors, as `cuda:0`; None is host memory. The engine asks for
        host memory, since it puts them where `like=` has them. The path is gone when this returns. Must not unpickle
        what it reads, unless its user has said so when he made the backend.
        """

    def view_checkpoint(self, path: Path) -> Any:
        """The same, of a file that stays: tensors may be mapped into memory instead of read, as pages of their own.

        That is how states are imported that are larger than memory. Whoever can only read them whole leaves this
        as it is.
        """
        return self.load_checkpoint(path)

    def check_checkpoint(self, path: Path, data: Any) -> list[str]:
        """The paths of those tensors that stand in `path` otherwise than in `data`: what an export ends with.

        Who has a library for the format reads it with that, and not with what has written it.
        """
        return differing(self.view_checkpoint(path), data)

    def kept(self, data: Any) -> Any:
        """What of a state the format can hold: all of it, unless it is one for weights alone."""
        return data

    def recognises(self, path: Path) -> bool:
        """Whether a file or folder that is there looks like one of its own. A guess by its name, unless it looks."""
        return bool(self.suffix) and path.name.endswith(self.suffix)
