"""The callback: what its users say, and the beginning and end of its part in a fit.

What happens in between is `loop.py`'s.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from signal import Signals
from typing import TYPE_CHECKING, Any, Unpack

import keras

from ckpt_core import BaseHook, CheckpointManager, SaveFailedError, Session, UsageError
from ckpt_core.fitting import Renames
from ckpt_core.opening import ManagerOptions, ManagerSource
from ckpt_core.policies import RetentionPolicy, SavePolicy, SavePolicyHook
from ckpt_core.preemption import PREEMPTION_SIGNALS
from ckpt_core.session import Resumption
from ckpt_keras.dialect import mode_of, retention_of, save_policy_of
from ckpt_keras.feeds import ResumeData
from ckpt_keras.loop import FitWatch
from ckpt_keras.losses import learning_rate_of
from ckpt_keras.weights import load_weights

if TYPE_CHECKING:

    class Callback: ...
else:
    Callback = keras.callbacks.Callback

__all__ = ["CheckpointCallback"]


class CheckpointCallback(Callback):
    """Saves what `fit` trains, and goes on exactly where an earlier run of it was stopped.

        model.fit(x, y, epochs=10, callbacks=[CheckpointCallback("checkpoints", experiment="digits")])

    `root`, `experiment`, `metric`, `mode`, `retention`, `hooks` and the `options` (`max_pending`, `on_busy`,
    `staged_bytes` and so on) are those of `CheckpointManager`; or give a `manager` that is there. `monitor` is
    Keras' word for `metric`; `mode` may be "auto". When to save: `save_freq` ("epoch" or a number of batches),
    `every_n_steps` (batches), `every_n_epochs`, `every_minutes`, `save_policy`; with none of them, after every
    epoch and whenever `monitor` improves. `save_best_only` keeps the best and the newest. `resume`: `"auto"` (the
    newest checkpoint, if any), None (a new attempt) or a reference. `init_from`: a reference whose weights a
    training starts with that has nothing to resume, with `strict` and `renames` as in `load_weights`.
    `resume_data`: how to go back to a position in the data, `"auto"`, `"skip"` or `"replay"`. `signals` are those
    after which it saves and lets the earlier handler go on.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | Any = None,
        *,
        experiment: str | None = None,
        manager: CheckpointManager | None = None,
        monitor: str | None = None,
        metric: str | None = None,
        mode: str | None = None,
        save_best_only: bool = False,
        save_freq: Any = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        every_minutes: float | None = None,
        save_policy: SavePolicy | None = None,
        retention: Sequence[RetentionPolicy] = (),
        hooks: Iterable[BaseHook] = (),
        resume: str | None = "auto",
        init_from: str | None = None,
        strict: bool = True,
        renames: Renames | None = None,
        resume_data: ResumeData = "auto",
        signals: Iterable[Signals] = PREEMPTION_SIGNALS,
        **options: Unpack[ManagerOptions],
    ) -> None:
        super().__init__()
        if monitor is not None and metric is not None and monitor != metric:
            raise UsageError(
                f"monitor={monitor!r} and metric={metric!r} are the same thing: give one of them",
                kind="monitor",
            )
        if resume_data not in ("auto", "skip", "replay"):
            raise UsageError(
                f'resume_data={resume_data!r}; give "auto", "skip" or "replay"', kind="resume_data"
            )
        monitor = metric if monitor is None else monitor
        if monitor is None and save_best_only:
            monitor = "val_loss"
        direction = mode_of(mode, monitor)
        self.policy = save_policy_of(
            monitor=monitor, mode=direction, save_freq=save_freq, every_n_steps=every_n_steps,
            every_n_epochs=every_n_epochs, every_minutes=every_minutes, save_policy=save_policy,
        )  # fmt: skip
        own = manager is None
        self._source = ManagerSource(
            root, experiment, manager, call="CheckpointCallback", metric=monitor if own else None,
            mode=direction if own else None, retention=retention_of(save_best_only, retention),
            hooks=tuple(hooks), **options,
        )  # fmt: skip
        self._resume = resume
        self._resume_data: ResumeData = resume_data
        self._init = (init_from, strict, renames)
        self._signal_numbers = tuple(signals)
        self._session: Session | None = None
        self._watch: FitWatch | None = None

    # -- what users look at -----------------------------------------------------------------------

    @property
    def manager(self) -> CheckpointManager:
        """The manager, opened when it is first needed."""
        return self._source.manager

    @property
    def session(self) -> Session:
        """The session of the present or last fit."""
        assert self._session is not None
        return self._session

    @property
    def resumption(self) -> Resumption | None:
        """How the present or last fit began: `kind`, `step`, `checkpoint`; None before there was one."""
        return self._session.resumption if self._session is not None else None

    # -- Keras' events ----------------------------------------------------------------------------

    def on_train_begin(self, logs: Any = None) -> None:
        """Decides what to go on from, and has `fit` watched from here on."""
        if self._watch is not None:
            self._watch.abandon()
        _refuse_other_versions()
        _refuse_several_processes()
        watch = FitWatch.joined(self, self._resume_data)
        try:
            self._begin(watch)
        except BaseException as error:
            watch.abandon(error)
            self.let_go(error)
            raise
        self._watch = watch

    def _begin(self, watch: FitWatch) -> None:
        self._session = Session(self.manager, signals=self._signal_numbers)
        self._session.learning_rate = lambda: learning_rate_of(watch.model)
        resumption = self._session.resume(self._resume)
        policies = [each for each in self.manager.hooks.hooks() if isinstance(each, SavePolicyHook)]
        if not any(each.policy is self.policy for each in policies):
            self.manager.hooks.register_hook(SavePolicyHook(self.policy))
        reference, strict, renames = self._init
        if resumption.state is None and reference is not None and not watch.resumed:
            watch.build()
            load_weights(watch.model, self.manager, reference, strict=strict, renames=renames)
        watch.join(self)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Nothing. That it is here keeps Keras from running callbacks beside the training, where no one waits."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Takes hold of what the callbacks share, and others may still add to."""
        if self._watch is not None:
            self._watch.logs = logs or {}

    def let_go(self, error: BaseException | None) -> None:
        """For the watch: the fit is over."""
        self._watch = None
        if self._session is not None:
            self._session.close()
        # What ended the fit says more than the saves that have failed in it.
        with contextlib.suppress(*([SaveFailedError] if error is not None else [])):
            self._source.close()


def _refuse_other_versions() -> None:
    version = tuple(int(part) for part in keras.__version__.split(".")[:2])
    if version < (3, 11):  # whose epochs count their batches in another way
        raise UsageError(
            f"this is Keras {keras.__version__}, and the callback needs 3.11 or newer: pip install -U keras",
            kind="version",
        )


def _refuse_several_processes() -> None:
    backend = keras.config.backend()
    count = 1
    if backend == "jax":
        import jax

        count = jax.process_count()
    elif backend == "torch":
        import torch

        if torch.distributed.is_available() and torch.distributed.is_initialized():
            count = torch.distributed.get_world_size()
    else:
        import tensorflow

        strategy = tensorflow.distribute.get_strategy()
        if getattr(strategy.extended, "_in_multi_worker_mode", bool)():
            count = 2
    if count > 1:
        raise UsageError(
            "the training runs in several processes, and this callback saves from one", kind="processes"
        )
