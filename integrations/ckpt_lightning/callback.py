"""The behaviour of the Lightning callback, without its base class: what its users say, and Lightning's hooks.

`__init__.py` joins it to the `Checkpoint` class of the package in use. What happens in a fit is `run.py`'s.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from signal import Signals
from typing import Any, Unpack

from ckpt_core import BaseHook, CheckpointManager, CkptError, UsageError
from ckpt_core.fitting import Renames
from ckpt_core.opening import ManagerOptions, ManagerSource
from ckpt_core.policies import RetentionPolicy, SavePolicy
from ckpt_core.preemption import PREEMPTION_SIGNALS
from ckpt_core.session import Resumption
from ckpt_lightning import results
from ckpt_lightning.dialect import retention_of, save_policy_of
from ckpt_lightning.io import ReferenceReader
from ckpt_lightning.participant import Participant
from ckpt_lightning.ranks import Ranks
from ckpt_lightning.run import Run
from ckpt_torch.lazy import Staging, checked_staging
from ckpt_torch.loader import ResumeData

__all__ = ["CallbackBehaviour"]

_log = logging.getLogger("ckpt_core.lightning")


class CallbackBehaviour:
    """Saves a Lightning run while it trains and goes on exactly where an earlier run of it was stopped.

        trainer = Trainer(callbacks=[CheckpointCallback("checkpoints", experiment="digits")])

    `root`, `experiment`, `metric`, `mode`, `retention`, `hooks` and the `options` (`max_pending`, `on_busy`,
    `staged_bytes` and so on) are those of `CheckpointManager`; or give a `manager` that is there. `monitor` is
    Lightning's word for `metric`. When to save: `every_n_train_steps` (or `every_n_steps`), `every_n_epochs`,
    `train_time_interval` (or `every_minutes`), `save_policy`; with none of them, after every epoch and
    whenever `monitor` improves. What to keep: `save_top_k`, `save_last`, `retention`; with none, everything.
    `resume`: `"auto"` (the newest checkpoint, if any), None (a new attempt) or a reference; what is given
    to `trainer.fit(ckpt_path=...)` goes before it. `resume_data`: how to go back to a position in the data,
    `"auto"`, `"skip"` or `"replay"`. `init_from`: a reference whose weights a training begins with that has
    nothing to resume, with `strict` and `renames` as in `load_weights`. `signals` are those after which it saves
    and lets the earlier handler go on. `staging="lazy"`: parameters and what optimizers keep are copied while
    forward and backward run, and the next step of an optimizer waits for it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        experiment: str | None = None,
        manager: CheckpointManager | None = None,
        monitor: str | None = None,
        metric: str | None = None,
        mode: Any = None,
        save_top_k: int | None = None,
        save_last: bool | str | None = None,
        every_n_train_steps: int | None = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        train_time_interval: timedelta | None = None,
        every_minutes: float | None = None,
        save_policy: SavePolicy | None = None,
        retention: Sequence[RetentionPolicy] = (),
        hooks: Iterable[BaseHook] = (),
        resume: str | None = "auto",
        resume_data: ResumeData = "auto",
        init_from: str | None = None,
        strict: bool = True,
        renames: Renames | None = None,
        signals: Iterable[Signals] = PREEMPTION_SIGNALS,
        staging: Staging = "copy",
        **options: Unpack[ManagerOptions],
    ) -> None:
        super().__init__()
        if monitor is not None and metric is not None and monitor != metric:
            raise UsageError(
                f"monitor={monitor!r} and metric={metric!r} are the same thing: give one of them"
            )
        monitor = metric if monitor is None else monitor
        if manager is not None and monitor is None:
            monitor, mode = manager.metric, manager.mode
        policy = save_policy_of(
            monitor=monitor, mode=mode or "min", save_policy=save_policy, every_n_steps=every_n_steps,
            every_n_train_steps=every_n_train_steps, every_n_epochs=every_n_epochs,
            every_minutes=every_minutes, train_time_interval=train_time_interval,
            default=manager is None or manager.save_policy is None,
        )  # fmt: skip
        kept = retention_of(monitor=monitor, save_top_k=save_top_k, save_last=save_last, retention=retention)
        same = manager is not None and (monitor, mode or manager.mode) == (manager.metric, manager.mode)
        source = ManagerSource(
            root, experiment, manager, call="CheckpointCallback", metric=None if same else monitor,
            mode=None if same else mode, retention=kept, hooks=tuple(hooks), **options,
        )  # fmt: skip
        self._experiment = experiment if manager is None else manager.experiment
        self._best = "best" if monitor is not None else "latest"
        self._resume = resume
        self._resume_data: ResumeData = resume_data
        self._participant = Participant(
            source, policy, resume=resume, init=(init_from, strict, renames), signals=signals,
            staging=checked_staging(staging),
        )  # fmt: skip
        self._run: Run | None = None
        self._ranks: Ranks | None = None
        self._trained: weakref.ref[Any] | None = None

    # -- what users look at -----------------------------------------------------------------------

    @property
    def manager(self) -> CheckpointManager:
        """The manager, opened when it is first needed."""
        return self._participant.manager

    @property
    def resumption(self) -> Resumption | None:
        """How the present or last fit began: `kind`, `step`, `checkpoint`; None before there was one."""
        session = self._participant.session
        return session.resumption if session is not None else None

    @property
    def best_model_path(self) -> str:
        """What `ckpt_path="best"` means: a reference. Without `monitor` the newest is the best."""
        return f"{self._experiment}@{self._best}"

    @best_model_path.setter
    def best_model_path(self, path: str) -> None:
        """Lightning sets it where processes were forked or spawned: to the same."""

    # -- Lightning's hooks: beginning -------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Puts a CheckpointIO that understands references before the trainer's; in fit, watches the loop."""
        if trainer.fast_dev_run:
            return
        leader = next(each for each in trainer.callbacks if isinstance(each, CallbackBehaviour))
        if leader is self:
            self._ranks = Ranks.of(trainer)
            self._put_reader(trainer, self._ranks)
        if stage != "fit":
            return
        self._choose_resume(pl_module)
        if leader is self:
            assert self._ranks is not None
            self._run = Run(
                trainer, self._ranks, trainer.strategy.checkpoint_io, resume_data=self._resume_data
            )
        self._run = leader._run
        assert self._run is not None
        self._run.join(self._participant)

    def _put_reader(self, trainer: Any, ranks: Ranks) -> None:
        strategy = trainer.strategy
        if not isinstance(strategy.checkpoint_io, ReferenceReader):
            from ckpt_lightning import io_class_for

            strategy.checkpoint_io = io_class_for(type(strategy.checkpoint_io))(
                lambda: self.manager, strategy.checkpoint_io
            )
        strategy.checkpoint_io.ranks = ranks

    def _choose_resume(self, module: Any) -> None:
        """A callback that has trained a model goes on from what it has saved of it, and with no other model."""
        if self._trained is None:
            return
        same = self._trained() is module
        self._participant.resume = "auto" if same else self._resume
        self._participant.refusal = None
        if not same and self._resume is not None:
            self._participant.refusal = (
                f"this callback has saved the training of another model as {self._experiment!r}: give each model a "
                "callback and an experiment of its own, or say resume=None for a new attempt, or "
                'fit(..., ckpt_path="latest") to go on from what was saved'
            )

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Mapping[str, Any]) -> None:
        """The loop goes to where the checkpoint was made."""
        if self._run is not None:
            self._run.load(checkpoint)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Nothing is trained that was complete, unless there is more to do now."""
        if self._run is not None:
            self._trained = weakref.ref(pl_module)
            self._run.settle()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """By now Lightning has its own signal handlers, which ours let go on."""
        if self._run is not None:
            self._run.begin()
            self._participant.begin(trainer.global_step, trainer.current_epoch)

    # -- Lightning's hooks: events ----------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """EPOCH_BEGIN."""
        if self._run is not None:
            self._participant.live.epoch_begin(trainer.global_step, trainer.current_epoch)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """An iteration begins."""
        if self._run is not None:
            self._run.begin_iteration()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """STEP_END, if an optimizer made a step."""
        if self._run is None or trainer.global_step == self._participant.step:
            return
        step = trainer.global_step
        # To read a metric waits for the device; so as often as Lightning's own loggers, and no more.
        every = trainer.log_every_n_steps
        metrics = results.fresh(trainer) if every and step % every == 0 else {}
        self._participant.step_end(step, trainer.current_epoch, metrics, lambda: results.loss_of(outputs))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """A validation may be of averaged weights, which change places with the others for as long as it takes."""
        if self._run is not None:
            self._participant.settle()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """EVALUATE_END."""
        if self._run is not None and self._run.trains and not trainer.sanity_checking:
            metrics = results.fresh(trainer)
            self._participant.live.evaluate_end(trainer.global_step, trainer.current_epoch, metrics)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """EPOCH_END. If it was the last one, averaged weights may be put into the model next."""
        if self._run is not None:
            self._participant.settle()
            metrics = results.fresh(trainer)
            self._participant.live.epoch_end(trainer.global_step, trainer.current_epoch, metrics)

    # -- Lightning's hooks: the end ---------------------------------------------------------------

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The last save; everything is durable when this returns."""
        if self._run is not None:
            self._run.finish(self._participant)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """What is being written becomes durable, and what was good before the failure is saved."""
        if self._run is not None:
            self._run.fail(self._participant, exception)
        try:
            self._let_go()
        except CkptError as error:  # what ended the training says more
            _log.error("%s", error)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leaves trainer, signals and store as they were."""
        self._let_go()

    def _let_go(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.leave(self._participant)
            return
        self._participant.close()
        if self._ranks is not None:
            self._ranks.close()
