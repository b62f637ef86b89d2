"""One callback's part in a training: its manager, its session, what it begins with, and when it saves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from signal import Signals

import torch
from torch.optim import Optimizer

from ckpt_core import Checkpoint, CheckpointManager, Session, UsageError
from ckpt_core.fitting import Renames
from ckpt_core.opening import ManagerSource
from ckpt_core.policies import SavePolicy, SavePolicyHook
from ckpt_lightning.ranks import Follower, Ranks, SharedSignals
from ckpt_torch.lazy import LazyParameters, Staging
from ckpt_torch.rates import learning_rate_of
from ckpt_torch.weights import load_weights

__all__ = ["Participant"]


class Participant:
    """What a callback was told, and from `open` to `close` its session; in a process that is not the first, a
    `Follower` in its place.

    `init`: reference, `strict` and `renames` of the weights to begin with where there is nothing to resume.
    """

    def __init__(
        self,
        source: ManagerSource,
        policy: SavePolicy | None,
        *,
        resume: str | None,
        init: tuple[str | None, bool, Renames | None],
        signals: Iterable[Signals],
        staging: Staging,
    ) -> None:
        self.source = source
        self.policy = policy
        self.resume = resume
        self.refusal: str | None = None
        """Why it goes on from nothing unless it is told from what; None where it does."""
        self.session: Session | Follower | None = None
        self.step = self._begun = 0
        self._init = init
        self._signals = tuple(signals)
        self._staging = staging
        self._lazy: LazyParameters | None = None
        self._hook: SavePolicyHook | None = None

    @property
    def manager(self) -> CheckpointManager:
        """The manager, opened when it is first needed."""
        return self.source.manager

    @property
    def live(self) -> Session | Follower:
        """The session; there is one in a fit."""
        assert self.session is not None
        return self.session

    def open(self, ranks: Ranks, optimizers: Callable[[], Iterable[Optimizer]]) -> None:
        """A fit is being set up, which will have these optimizers."""
        if ranks.leads:
            self.session = Session(self.manager, signals=SharedSignals(ranks, self._signals))
            self.session.lazy = self._lazy = LazyParameters.chosen(self._staging, optimizers)
            self.session.learning_rate = lambda: learning_rate_of(optimizers())
        else:
            self.session = Follower(ranks, self._signals)

    # -- what to go on from, in the first process ---------------------------------------------------

    def candidate(self) -> tuple[str, Checkpoint] | None:
        """The reference and the checkpoint that it would go on from; None for a fresh start.

        Raises UsageError where it refuses, NotFoundError, CorruptionError.
        """
        if self.refusal is not None:
            raise UsageError(self.refusal, kind="model")
        if self.resume is None:
            return None
        reference = "latest" if self.resume == "auto" else self.resume
        there = self.manager.latest() if self.resume == "auto" else self.manager.resolve(reference)
        return None if there is None else (reference, there)

    def newest_until(self, step: int) -> Checkpoint | None:
        """Its newest checkpoint that is not of a later step."""
        newest = self.manager.latest()
        if newest is None or newest.step <= step:
            return newest
        lineage = newest.attempt.lineage
        earlier = [each for each in self.manager.checkpoints() if each.step <= step]
        return max(
            (each for each in earlier if each.attempt.lineage == lineage),
            key=lambda each: (each.step, each.id),
            default=None,
        )

    def begins_with_weights(self, module: torch.nn.Module) -> bool:
        """Gives a model the weights that the callback was told to begin with; whether it was."""
        reference, strict, renames = self._init
        if reference is None:
            return False
        load_weights(module, self.manager, reference, strict=strict, renames=renames)
        return True

    # -- training ---------------------------------------------------------------------------------

    def begin(self, step: int, epoch: int) -> None:
        """Signals are noted from here on, and the save policy asked."""
        self.step = self._begun = step
        if self.policy is not None and isinstance(self.session, Session):
            lineage = self.manager.attempt.lineage
            saved = [each for each in self.manager.checkpoints() if each.attempt.lineage == lineage]
            self._hook = SavePolicyHook(self.policy, saved=saved)
            self.manager.hooks.register_hook(self._hook)
        self.live.begin(step, epoch)

    @property
    def has_moved(self) -> bool:
        """Whether a step was made since training began or went on."""
        return self.step != self._begun

    @property
    def due(self) -> bool:
        """Whether the session has something to do at a safe point: to save, or to tell of a save that failed."""
        session = self.live
        if not isinstance(session, Session) or session.due:
            return session.due
        return session.manager.on_save_error == "stop" and bool(session.manager.failures)

    def step_end(
        self, step: int, epoch: int, metrics: Mapping[str, float], loss: Callable[[], float | None]
    ) -> None:
        """A step was made."""
        self.step = step
        self.live.step_end(step, epoch, metrics, loss=loss)

    def settle(self) -> None:
        """What comes now may change weights otherwise than by a step: returns when all is copied."""
        if self._lazy is not None:
            self._lazy.settle()

    def close(self) -> None:
        """Leaves signals and store as they were. Raises what `ManagerSource.close` raises."""
        if self.session is not None:
            self.session.close()
        if self._hook is not None and self.source.opened:
            self.manager.hooks.unregister_hook(self._hook)
        self._hook = None
        try:
            self.source.close()
        finally:
            if self._lazy is not None:
                self._lazy.close()
            self._lazy = None
