"""An attempt while it lives: that it began is written down, a lease is its sign of life, and so is how it ended.

Whoever looks from outside needs no more: an attempt that said nothing at its end and whose lease is over is lost.
Nothing here makes a save fail; what cannot be written is tried again.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, final, get_args

from ckpt_core import clock
from ckpt_core.config import process, surroundings
from ckpt_core.configuration import plain_text
from ckpt_core.errors import CkptError, ObjectExistsError, UsageError
from ckpt_core.model import Attempt, AttemptFacts
from ckpt_core.pipeline.workspace import Workspace
from ckpt_core.repository import HeldLease

__all__ = ["AttemptKeeper", "Outcome", "described", "ending"]

Outcome = Literal["finished", "failed", "preempted"]
PERIOD = 60.0
"""Seconds between two signs of life."""

_LONGEST_REASON = 2000
_log = logging.getLogger("ckpt_core.attempts")


def described(error: BaseException) -> str:
    """An exception in one line: `ValueError: what it said`."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def ending(error: BaseException | None) -> tuple[Outcome, str]:
    """How an attempt ends whose manager is closed by, or without, an exception."""
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "finished", ""
    return "failed", described(error)


@final
class AttemptKeeper:
    """Keeps the records of one manager's attempts. Thread-safe. `report` says how the manager fares, as long as there
    is one."""

    def __init__(
        self,
        workspace: Workspace,
        experiment: str,
        config: dict[str, Any] | None,
        report: weakref.WeakMethod[Callable[[], dict[str, Any]]],
    ) -> None:
        self._workspace = workspace
        self._experiment = experiment
        self._config = config
        self._report = report
        self._lock = threading.RLock()
        self._facts: AttemptFacts | None = None
        self._lease: HeldLease | None = None
        self._written = False
        self._warned = False
        self._stop = threading.Event()

    def begin(self, attempt: Attempt, origin: str | None) -> None:
        """An attempt begins; the one before, if it has not said anything, came to its end."""
        with self._lock:
            self.end("finished")
            self._drop_lease()
            self._written = self._warned = False
            self._facts = AttemptFacts(
                experiment=self._experiment,
                attempt=attempt,
                started_at=clock.now(),
                origin=origin,
                config=self._config,
                environment=surroundings(),
                process=process(),
            )
            self.settle()

    def settle(self) -> None:
        """Writes down that the attempt began, if that has not been possible yet. Never raises."""
        with self._lock:
            if self._facts is None or self._written:
                return
            try:
                if self._lease is None:
                    self._take_lease()
                with suppress(ObjectExistsError):  # written, but the acknowledgement was lost
                    self._workspace.experiments.begin(self._facts)
            except CkptError as error:
                if not self._warned:
                    _log.warning(
                        "that attempt %d began is not written down yet: %s", self._facts.attempt.number, error
                    )
                self._warned = True
                return
            self._written = True
            self._tell()

    def end(self, outcome: Outcome, reason: str = "") -> None:
        """The attempt says how it ended, unless it has done so already. Raises UsageError for a word that is none;
        never for what happens in the store."""
        if outcome not in get_args(Outcome):
            raise UsageError(
                f"outcome={outcome!r} must be one of {', '.join(map(repr, get_args(Outcome)))}", kind="option"
            )
        with self._lock:
            if self._facts is not None and self._facts.outcome in (None, "running"):
                self._say(outcome, reason)

    def goes_on(self) -> None:
        """It did not end after all."""
        with self._lock:
            if self._facts is not None and self._facts.outcome not in (None, "running"):
                self._say("running", "")

    def close(self) -> None:
        """No further sign of life. May be repeated."""
        with self._lock:
            self._drop_lease()

    def _say(self, outcome: str, reason: str) -> None:
        assert self._facts is not None
        self.settle()
        try:
            said = self._workspace.experiments.say(
                self._facts, outcome, plain_text(str(reason))[:_LONGEST_REASON], self._figures()
            )
        except CkptError as error:
            _log.warning(
                "that attempt %d is %s could not be written down: %s",
                self._facts.attempt.number,
                outcome,
                error,
            )
            return
        self._facts = said
        self._tell()

    def _figures(self) -> dict[str, Any]:
        report = self._report()
        return report() if report is not None else {}

    def _tell(self) -> None:
        facts = self._facts
        assert facts is not None
        self._workspace.index.tell(lambda catalog: catalog.put_attempts([facts]))

    def _take_lease(self) -> None:
        assert self._facts is not None
        lease = self._workspace.repository.leases.take(f"training of {self._experiment!a}")
        self._lease, self._stop = lease, threading.Event()
        self._facts = replace(self._facts, lease=lease.id)
        weakref.finalize(self, _abandon, lease, self._stop, os.getpid())
        threading.Thread(
            target=_live, args=(self._stop, weakref.ref(self)), name="ckpt-attempt", daemon=True
        ).start()

    def _drop_lease(self) -> None:
        self._stop.set()
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def sign(self) -> None:
        """A sign of life. Never raises."""
        report = self._figures()
        with self._lock:
            self.settle()
            if self._lease is not None:
                try:
                    self._lease.report(report)
                except CkptError as error:  # the store may be back for the next one
                    _log.debug("no sign of life: %s", error)


def _live(stop: threading.Event, reference: weakref.ref[AttemptKeeper]) -> None:
    while not stop.wait(PERIOD):
        keeper = reference()
        if keeper is None:
            return
        keeper.sign()
        del keeper


def _abandon(lease: HeldLease, stop: threading.Event, owner: int) -> None:
    stop.set()
    if os.getpid() == owner:  # a forked child that ends is not the end of the attempt
        lease.release()
