"""One writer in an experiment, where that is asked for: a lock in the store, renewed while the manager is open."""

from __future__ import annotations

import logging
import threading

from ckpt_core.errors import StoreError
from ckpt_core.repository import Repository
from ckpt_core.repository.leases import LOCK_SECONDS

__all__ = ["SoleWriter", "refuse_beside"]

_log = logging.getLogger("ckpt_core.pipeline")
_PERIOD = LOCK_SECONDS / 10


class SoleWriter:
    """Keeps others from writing to an experiment until it is closed. Raises StoreError (kind `locked`) where
    one does so already."""

    def __init__(self, repository: Repository, experiment: str) -> None:
        self._experiment = experiment
        self._lock = threading.Lock()
        self._lease = repository.leases.take(f"writer of {experiment!a}", lock=_lock_of(experiment))
        self._closed = threading.Event()
        threading.Thread(target=self._renew, name="ckpt-sole-writer", daemon=True).start()

    def check(self) -> None:
        """Raises StoreError (kind `locked`) where this process was held up for so long that another may have
        taken its place: nothing that it saves may come after what that one saves."""
        with self._lock:
            if not self._lease.stands():
                raise StoreError(
                    f"this process was held up, and another may be writing to experiment {self._experiment!a} "
                    "by now: end one of the two, then open a new manager",
                    kind="locked",
                )

    def close(self) -> None:
        """Lets others write. May be repeated."""
        if not self._closed.is_set():
            self._closed.set()
            with self._lock:
                self._lease.release()

    def _renew(self) -> None:
        while not self._closed.wait(_PERIOD):
            try:
                with self._lock:
                    if not self._closed.is_set():
                        self._lease.renew()
            except StoreError as error:  # the store may be back for the next try
                _log.warning("the lock of experiment %r could not be renewed: %s", self._experiment, error)


def refuse_beside(repository: Repository, experiment: str) -> None:
    """Raises StoreError (kind `locked`) where somebody writes to the experiment and wants to be alone."""
    for _, lease in repository.leases.living():
        if lease.lock == _lock_of(experiment):
            raise StoreError(
                f"the {lease.purpose} ({lease.holder}) has asked to be the only one: wait until it has ended, "
                "or choose another experiment",
                kind="locked",
                holder=lease.holder,
            )


def _lock_of(experiment: str) -> str:
    return f"experiment {experiment}"
