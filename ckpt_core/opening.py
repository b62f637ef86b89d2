"""Which manager an adapter saves through: one that its user holds, or one of its own, opened when it is needed."""

from __future__ import annotations

import difflib
import inspect
import os
from typing import TYPE_CHECKING, Any, Literal, TypedDict, final

from ckpt_core.backends import StorageBackend
from ckpt_core.errors import UsageError
from ckpt_core.format.compression import Compression
from ckpt_core.format.hashing import Algorithm
from ckpt_core.format.signing import KeyFiles
from ckpt_core.manager import CheckpointManager, OnSaveError
from ckpt_core.pipeline.queue import OnBusy
from ckpt_core.stores import Store

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["ManagerOptions", "ManagerSource"]


class ManagerOptions(TypedDict, total=False):
    """The arguments of `CheckpointManager` that every adapter passes on as they are.

    The others each adapter has itself, as some frameworks have words of their own for them.
    """

    catalog: str | None
    backend: str | StorageBackend | None
    hooks_file: str | os.PathLike[str] | Literal[False] | None
    max_pending: int | None
    on_busy: OnBusy | None
    staged_bytes: int | None
    save_threads: int | None
    chunk_bytes: int | None
    digest: Algorithm | None
    compression: Compression | None
    parity: int | None
    mirror: str | os.PathLike[str] | Store | None
    exclusive: bool | None
    on_save_error: OnSaveError | None
    signing_key: str | os.PathLike[str] | Ed25519PrivateKey | None
    trusted_keys: KeyFiles | None
    config: Any
    flush_seconds: float | None


@final
class ManagerSource:
    """The manager of one adapter.

    Either `manager`, and then whatever a manager decides is its own to say; or `root` and `experiment`, and
    the manager is opened at first use, closed by `close`, and opened again if it is used after that. An
    option that is None or empty was not given. `call` is what its user wrote, for the messages. Raises UsageError.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | Store | None,
        experiment: str | None,
        manager: CheckpointManager | None,
        *,
        call: str,
        **options: Any,
    ) -> None:
        _refuse_unknown(options, call)
        none = {
            name: None if name == "trusted_keys" else () for name in options
        }  # to trust nobody is a mistake
        given = {name: value for name, value in options.items() if value is not None and value != none[name]}
        if manager is not None:
            named = {"root": root, "experiment": experiment}
            extra = [*(name for name, value in named.items() if value is not None), *given]
            if extra:
                raise UsageError(
                    f"with manager=, these are the manager's to say: {', '.join(extra)}", kind="manager"
                )
        elif root is None or experiment is None:
            raise UsageError(f'say where to save: {call}("checkpoints", experiment="...")', kind="root")
        self._root = root
        self._options = {"experiment": experiment, **given}
        self._manager = manager
        self.owned = manager is None

    @property
    def opened(self) -> bool:
        """Whether there is a manager at present."""
        return self._manager is not None

    @property
    def manager(self) -> CheckpointManager:
        """The manager, opened if it is not."""
        if self._manager is None:
            assert self._root is not None
            self._manager = CheckpointManager(self._root, **self._options)
        return self._manager

    def close(self) -> None:
        """Waits for pending saves, and closes the manager if it is our own. May be repeated.

        Raises what `CheckpointManager.close` raises.
        """
        manager = self._manager
        if manager is None:
            return
        if not self.owned:
            manager.wait()
            return
        self._manager = None
        manager.close()


def _refuse_unknown(options: dict[str, Any], call: str) -> None:
    """What an adapter has no argument for, and passes on, the manager must have one for."""
    known = inspect.signature(CheckpointManager).parameters
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            meant = f"; did you mean {close[0]}=?" if close else ""
            raise UsageError(
                f"{call} has no argument {name}=, and CheckpointManager has none{meant}", kind="option"
            )
