"""A CheckpointIO that understands references to checkpoints: `latest`, `best`, `step=100`, a tag, an id.

`last` is Lightning's word for `latest`.
Paths go on to the CheckpointIO that was there before. Built for a package of Lightning by `build`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ckpt_core import CheckpointManager, NotFoundError, UsageError
from ckpt_lightning.ranks import Ranks

__all__ = ["ReferenceReader", "as_reference"]


def as_reference(path: Any) -> str | None:
    """The reference that is meant, or None where a file is. `latest` is never a file, `a/b.ckpt` always is."""
    text = os.fspath(path)
    if not isinstance(text, str):
        return None
    reference = text.rpartition("@")[2]
    if reference in ("latest", "best", "last") or reference.startswith("step="):
        return text
    if os.path.exists(text) or os.sep in text or "://" in text or text.endswith((".ckpt", ".pt", ".pth")):
        return None
    return text


class ReferenceReader:
    """The behaviour of the CheckpointIO: `manager` gives the manager that references are asked of."""

    def __init__(
        self, manager: CheckpointManager | Callable[[], CheckpointManager], inner: Any = None
    ) -> None:
        super().__init__()
        self._manager = manager
        self.inner = inner
        self.ranks: Ranks | None = None
        """Where several processes load in step: the first one reads for all."""
        self.ready: dict[str, dict[str, Any]] = {}
        """States that were loaded already, by reference; each is handed out once."""

    @property
    def manager(self) -> CheckpointManager:
        return self._manager() if callable(self._manager) else self._manager

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The checkpoint that a reference means, or what the inner CheckpointIO makes of a path."""
        reference = as_reference(path)
        if reference is None:
            return dict(self._inner("load").load_checkpoint(path, *args, **kwargs))
        if reference in self.ready:
            return self.ready.pop(reference)
        if self.ranks is None or self.ranks.world == 1:
            return self._load(reference)
        found: list[dict[str, Any]] = []
        self.ranks.together(lambda: found.append(self._load(reference)))
        return self.ranks.share(found[0] if found else None)  # type: ignore[no-any-return]

    def _load(self, reference: str) -> dict[str, Any]:
        try:
            state: dict[str, Any] = self.manager.load("latest" if reference == "last" else reference)
        except NotFoundError as error:
            raise NotFoundError(
                f"{error}. There is no file {reference!r} either", kind="checkpoint"
            ) from error
        for ours in ("session", "ranks"):
            state.pop(ours, None)
        return state

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """For those who ask Lightning for a file: written by the inner CheckpointIO."""
        self._inner("save").save_checkpoint(checkpoint, path, storage_options=storage_options)

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a file. Checkpoints of the store are forgotten by retention, never from here."""
        self._inner("remove").remove_checkpoint(path)

    def teardown(self) -> None:
        """Ends the inner CheckpointIO."""
        if self.inner is not None:
            self.inner.teardown()

    def _inner(self, what: str) -> Any:
        if self.inner is None:
            raise UsageError(
                f"cannot {what} a file: this CheckpointIO reads references only (latest, best, step=N, a tag, an id); "
                "give it inner=TorchCheckpointIO() for files",
                kind="path",
            )
        return self.inner
